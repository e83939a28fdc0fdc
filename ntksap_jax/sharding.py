"""Placement on devices: a mesh of whatever there is, and where batches and replicated trees go.

Programs keep the global view: `jax.jit` splits the work by where its arguments lie, and results do
not depend on the number of devices beyond rounding. Batch statistics are those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh with one axis, `"data"`, over the given devices or all there are.

    The axis is of type Auto: models need no sharding annotations of their own.

    >>> data_mesh().axis_names
    ('data',)
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every array on every device of the mesh.

    >>> import jax.numpy as jnp
    >>> replicate({"w": jnp.ones(3)}, data_mesh())["w"].sharding.is_fully_replicated
    True
    """
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Splits every array along axis 0 over the mesh's `"data"` axis.

    Raises:
        ValueError: an axis 0 that the number of devices does not divide.

    >>> import jax.numpy as jnp
    >>> mesh = data_mesh()
    >>> shard_batch(jnp.ones((2 * mesh.size, 3)), mesh).sharding.spec == PartitionSpec("data")
    True
    """
    for leaf in jax.tree.leaves(tree):
        if leaf.shape[0] % mesh.size:
            raise ValueError(
                f"tree: a batch of {leaf.shape[0]} cannot be split over {mesh.size} devices. Use a "
                f"multiple of {mesh.size}, or a mesh of fewer devices."
            )
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("data")))
