"""Where arrays are placed on devices, and sums over devices.

A layout is taken of a concrete tree, outside of `jit`, and given to another tree inside of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding

from ntksap_jax.ops._types import varying

Layout = tuple[Sharding | None, ...]
"""The sharding of each leaf of a pytree, in the order of `jax.tree.leaves`; None: one device."""


def is_traced(tree: Any) -> bool:
    """Whether a leaf of the tree is a tracer: its value is not known yet, and cannot be checked."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def of(array: Any) -> Sharding | None:
    """Returns the sharding of an array if it is spread over devices; None under `jit`."""
    if not isinstance(array, jax.Array) or is_traced(array):
        return None
    return array.sharding if len(array.sharding.device_set) > 1 else None


def layout(tree: Any) -> Layout | None:
    """Returns the sharding of each leaf, for `constrain`; None if no leaf is spread over devices.

    Raises:
        ValueError: an array on a mesh with axes that are not of type Auto.
    """
    shardings = tuple(_canonical(of(leaf)) for leaf in jax.tree.leaves(tree))
    return shardings if any(shardings) else None


def check_auto(mesh: Any) -> None:
    if set(mesh.axis_types) != {AxisType.Auto}:
        raise ValueError(
            f"mesh: has axes of types {mesh.axis_types}, expected Auto: pass "
            "axis_types=(jax.sharding.AxisType.Auto,) * n to jax.make_mesh."
        )


def _canonical(sharding: Sharding | None) -> Sharding | None:
    """Equal for equal placements: `P("model", None)` is `P("model")`, as `jit` returns it."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    check_auto(sharding.mesh)
    spec = list(sharding.spec)
    while spec and spec[-1] is None:
        spec.pop()
    return sharding.update(spec=PartitionSpec(*spec))


def is_split(tree: Any) -> bool:
    """Whether a concrete tree has an array of which no device holds all."""
    leaves = jax.tree.leaves(tree)
    return any(isinstance(x, jax.Array) and not x.is_fully_replicated for x in leaves)


def is_on_host(leaf: Any) -> bool:
    """Whether the host's memory holds all of it in one piece, so that NumPy copies nothing."""
    if not isinstance(leaf, jax.Array):
        return True
    whole = leaf.is_fully_addressable and not is_split(leaf)
    return whole and {d.platform for d in leaf.devices()} == {"cpu"}


def constrain(tree: Any, layout: Layout | None) -> Any:
    """Places the leaves of a tree as those of the tree that `layout` was taken of. Traceable.

    Args:
        tree: with as many leaves as the other one.
        layout: from the function of that name; None leaves the tree as it is.
    """
    if layout is None:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    placed = [
        leaf if sharding is None else place_leaf(leaf, sharding)
        for leaf, sharding in zip(leaves, layout, strict=True)
    ]
    return jax.tree.unflatten(structure, placed)


def place_leaf(array: Any, sharding: Sharding) -> jax.Array:
    if is_traced(array):  # Knows what to do under `vmap`, which `device_put` does not.
        return jax.lax.with_sharding_constraint(array, sharding)
    return jax.device_put(array, sharding)


def vary_like(tree: Any, like: Any) -> Any:
    """Lets arrays differ between devices wherever an array of another tree does. Traceable.

    Inside of `shard_map` with its check, a loop must begin with what its iterations return.
    """
    arrays = [leaf for leaf in jax.tree.leaves(like) if hasattr(leaf, "dtype")]
    axes = set().union(*(varying(jax.typeof(leaf)) for leaf in arrays))

    def vary(leaf: Any) -> Any:
        missing = tuple(axes - set(varying(jax.typeof(leaf)))) if hasattr(leaf, "dtype") else ()
        if not missing:
            return leaf
        if not hasattr(jax.lax, "pcast"):  # as in jax 0.7.2
            return jax.lax.pvary(leaf, missing)  # type: ignore[attr-defined]
        return jax.lax.pcast(leaf, missing, to="varying")

    return jax.tree.map(vary, tree) if axes else tree


# -- Sums over shards ------------------------------------------------------------------------------


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

        return jax.lax.scan(add, zeros_of(item), (items, counts))[0]

    counts = jnp.asarray(positions < count)
    if shards == 1:  # XLA fails to compile an all-reduce over one shard beside other axes.
        return local(padded, counts)
    spec = PartitionSpec(axes)
    return jax.shard_map(
        lambda items, counts: jax.lax.psum(local(items, counts), axes),
        mesh=sharding.mesh,
        in_specs=(spec, spec),
        out_specs=PartitionSpec(),
        axis_names=set(axes),
        # Nothing is differentiated across the boundary, and our convolution has no rule for it.
        check_vma=False,
    )(padded, counts)


def axes_of(sharding: NamedSharding) -> set[str]:
    """Returns the axes of the mesh over which an array is split."""
    entries = [(x,) if isinstance(x, str) else x or () for x in sharding.spec]
    return set(itertools.chain.from_iterable(entries))


def _axes_of_items(sharding: NamedSharding) -> tuple[str, ...]:
    spec = tuple(sharding.spec)
    first = spec[0] if spec else None
    if first is None or any(axis is not None for axis in spec[1:]):
        raise ValueError(
            f"sharding: got {sharding.spec}, expected a PartitionSpec that splits axis 0 and no "
            "other: NamedSharding(mesh, PartitionSpec('data'))."
        )
    return (first,) if isinstance(first, str) else tuple(first)
