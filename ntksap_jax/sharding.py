"""Placement on devices: a mesh of whatever there is, and where batches and params go.

Programs keep the global view: `jax.jit` splits the work by where its arguments lie, and results do
not depend on the number of devices beyond rounding. Batch statistics are those of the whole batch.
You may use a mesh of your own; its axes must be of type Auto.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ntksap_jax import _boxes
from ntksap_jax._placement import check_auto, place_leaf
from ntksap_jax.types import Network

Rule = Callable[[str, tuple[int, ...]], PartitionSpec]
"""`rule(path, shape) -> PartitionSpec`: how the leaf at a path such as `"conv/kernel"` is split."""

# -- Meshes and batches ----------------------------------------------------------------------------


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh with one axis, `"data"`, over the given devices or all there are.

    The axis is of type Auto: models need no sharding annotations of their own.

    >>> data_mesh().axis_names
    ('data',)
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def model_mesh(size: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh with axes `"data"` and `"model"`, for networks too large for one device.

    Params are split over `"model"` (see `shard_params`), batches and samples over `"data"`.

    Args:
        size: number of devices along `"model"`; the others are along `"data"`.
        devices: by default all there are.

    Raises:
        ValueError: a size that does not divide the number of devices.

    >>> model_mesh(1).axis_names
    ('data', 'model')
    """
    devices = jax.devices() if devices is None else devices
    if not isinstance(size, numbers.Integral) or size < 1 or len(devices) % size:
        raise ValueError(
            f"size: got {size!r}, expected a divisor of the number of devices, {len(devices)}."
        )
    grid = np.array(devices).reshape(-1, size)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every array on every device of the mesh.

    Args:
        tree: pytree of arrays.
        mesh: where to.

    >>> import jax.numpy as jnp
    >>> replicate({"w": jnp.ones(3)}, data_mesh())["w"].sharding.is_fully_replicated
    True
    """
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Splits every array along axis 0 over the mesh's `"data"` axis.

    Args:
        tree: pytree of arrays, the examples along axis 0.
        mesh: with an axis `"data"`, such as `data_mesh()`.

    Raises:
        ValueError: an axis 0 that the number of devices does not divide; a mesh without that axis.

    >>> import jax.numpy as jnp
    >>> mesh = data_mesh()
    >>> shard_batch(jnp.ones((2 * mesh.size, 3)), mesh).sharding.spec == PartitionSpec("data")
    True
    """
    size = _axis_size(mesh, "data")
    for leaf in jax.tree.leaves(tree):
        if leaf.shape[0] % size:
            raise ValueError(
                f"tree: a batch of {leaf.shape[0]} cannot be split over {size} devices. Use a "
                f"multiple of {size}, or a mesh of fewer devices."
            )
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("data")))


def _axis_size(mesh: Mesh, axis: str) -> int:
    if axis not in mesh.shape:
        raise ValueError(
            f"mesh: has axes {mesh.axis_names} and none called {axis!r}. Place arrays yourself by "
            "jax.device_put(tree, NamedSharding(mesh, PartitionSpec(...)))."
        )
    return mesh.shape[axis]


# -- Params ----------------------------------------------------------------------------------------


def split_outputs(mesh: Mesh, *, axis: str = "model", min_size: int = 2**16) -> Rule:
    """Makes the rule that `shard_params` follows by default: split the outputs of every kernel.

    A leaf is split along its last axis, the outputs, or if the number of devices does not divide
    it, along the largest one that it divides.

    Args:
        mesh: where to.
        axis: the axis of the mesh to split over.
        min_size: leaves with fewer entries, such as biases, are copied to every device.

    Returns:
        The rule.

    Raises:
        ValueError: a mesh without that axis.

    >>> rule = split_outputs(model_mesh(1), min_size=100)
    >>> rule("conv/kernel", (3, 3, 16, 64)) == PartitionSpec(None, None, None, "model")
    True
    >>> rule("conv/bias", (64,)) == PartitionSpec()
    True
    """
    devices = _axis_size(mesh, axis)

    def rule(path: str, shape: tuple[int, ...]) -> PartitionSpec:
        del path
        last = len(shape) - 1
        divisible = [i for i, size in enumerate(shape) if size % devices == 0]
        if math.prod(shape) < min_size or not divisible:
            return PartitionSpec()
        chosen = last if last in divisible else max(divisible, key=lambda i: shape[i])
        return PartitionSpec(*[axis if i == chosen else None for i in range(len(shape))])

    return rule


def shard_params(tree: Any, mesh: Mesh, *, rule: Rule | None = None) -> Any:
    """Splits params over the `"model"` axis of a mesh, each leaf as a rule says. Traceable.

    What is computed from them is placed in the same way: `masks.create(params)`, scores, the masks
    and the fresh weights of a search, and the state of an optimiser. Results are those of a single
    device, up to rounding.

    Args:
        tree: pytree of arrays.
        mesh: with a `"model"` axis, such as `model_mesh(4)`; or any, with a rule of your own.
        rule: `rule(path, shape) -> PartitionSpec`; `split_outputs(mesh)` by default.

    Returns:
        The tree, placed; under `jit`, constrained to that placement.

    Raises:
        ValueError: a spec that does not fit its leaf, whose path is named; axes that are not of
            type Auto.

    >>> import jax.numpy as jnp
    >>> params = {"up": jnp.ones((256, 512)), "down": jnp.ones((512, 256)), "bias": jnp.ones(512)}
    >>> mesh = model_mesh(jax.device_count())
    >>> shard_params(params, mesh)["up"].sharding.spec == PartitionSpec(None, "model")
    True
    >>> def in_pairs(path, shape):  # what leaves the first layer split goes into the second so
    ...     specs = {"up": PartitionSpec(None, "model"), "down": PartitionSpec("model", None)}
    ...     return specs.get(path, PartitionSpec())
    >>> shard_params(params, mesh, rule=in_pairs)["down"].sharding.spec[0]
    'model'
    """
    check_auto(mesh)
    rule = split_outputs(mesh) if rule is None else rule

    def place(name: str, leaf: Any) -> Any:
        spec = rule(name, leaf.shape)
        try:
            sharding = NamedSharding(mesh, spec)
            sharding.shard_shape(leaf.shape)
        except (ValueError, TypeError, IndexError) as error:
            raise ValueError(
                f"rule: returned {spec} for leaf {name!r} of shape {leaf.shape}, which does not "
                f"fit: {error}"
            ) from error
        return place_leaf(leaf, sharding)

    return _boxes.map_named(place, tree)


def shard_network(network: Network, mesh: Mesh, *, rule: Rule | None = None) -> Network:
    """Returns the network with an `init` that draws params already sharded, as by `shard_params`.

    No device ever holds all params. The numbers are the same on any mesh.

    Args:
        network: from `linen`, `nnx` or `plain`.
        mesh: see `shard_params`.
        rule: see `shard_params`.

    >>> import flax.linen as nn, jax
    >>> import ntksap_jax as nts
    >>> mesh = model_mesh(jax.device_count())
    >>> network = shard_network(nts.linen(nn.Dense(512), (256,)), mesh)
    >>> network.init(jax.random.key(0))["kernel"].sharding.spec == PartitionSpec(None, "model")
    True
    """
    init = network.init
    return network._replace(init=jax.jit(lambda key: shard_params(init(key), mesh, rule=rule)))
