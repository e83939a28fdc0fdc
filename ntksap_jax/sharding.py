"""Placement on devices: a mesh of whatever there is, and where batches and replicated trees go.

Programs keep the global view: `jax.jit` splits the work by where its arguments lie, and results do
not depend on the number of devices beyond rounding. Batch statistics are those of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
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


def sum_over(function: Callable[[Any], Any], items: Any, sharding: NamedSharding) -> Any:
    """Sums `function(item)` over the items, each evaluated on one shard; one all-reduce in all.

    A shard goes through its items one after the other and keeps their sum, so neither its memory
    nor the bytes that devices exchange grow with the number of items. That number need not be a
    multiple of that of the shards: some then have less to do.

    Args:
        function: pure, from one item to a pytree of arrays. What it closes over is the same on all
            shards. It is traced once.
        items: pytree of arrays, such as PRNG keys, with the items along axis 0.
        sharding: the mesh, and in `spec[0]` the axis (or axes) that items are spread over. Other
            axes of the mesh are left to XLA.

    Returns:
        The sum, the same on every device.

    Raises:
        ValueError: a spec that does not split axis 0, and that alone.

    >>> mesh = data_mesh()
    >>> sharding = NamedSharding(mesh, PartitionSpec("data"))
    >>> float(sum_over(lambda x: x**2, jnp.arange(5.0), sharding))
    30.0
    """
    axes = _axes_of_items(sharding)
    shards = math.prod(sharding.mesh.shape[axis] for axis in axes)
    count = len(jax.tree.leaves(items)[0])
    # Padded with copies of the first item, which do not count.
    positions = np.arange(math.ceil(count / shards) * shards)
    padded = jax.tree.map(lambda x: x[np.where(positions < count, positions, 0)], items)

    def local(items: Any, counts: jax.Array) -> Any:
        def add(total: Any, item_and_counts: Any) -> tuple[Any, None]:
            item, counts = item_and_counts
            value = jax.lax.cond(counts, function, zeros_of, item)
            return jax.tree.map(jnp.add, total, value), None

        item = jax.tree.map(lambda x: x[0], items)
        shapes = jax.eval_shape(function, item)

        def zeros_of(item: Any) -> Any:
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        total, _ = jax.lax.scan(add, zeros_of(item), (items, counts))
        return jax.lax.psum(total, axes)

    spec = PartitionSpec(axes)
    return jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(spec, spec),
        out_specs=PartitionSpec(),
        axis_names=set(axes),
        # Nothing is differentiated across the boundary, and our convolution has no rule for it.
        check_vma=False,
    )(padded, jnp.asarray(positions < count))


def _axes_of_items(sharding: NamedSharding) -> tuple[str, ...]:
    spec = tuple(sharding.spec)
    first = spec[0] if spec else None
    if first is None or any(axis is not None for axis in spec[1:]):
        raise ValueError(
            f"sharding: got {sharding.spec}, expected a PartitionSpec that splits axis 0 and no "
            "other: NamedSharding(mesh, PartitionSpec('data'))."
        )
    return (first,) if isinstance(first, str) else tuple(first)
