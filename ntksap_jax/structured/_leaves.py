"""Leaves of a pytree by path: read some, replace some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ntksap_jax import _boxes, masks
from ntksap_jax.structured.channels import Channels
from ntksap_jax.structured.types import FilterLayer


def replace(tree: Any, changed: Mapping[str, Any]) -> Any:
    """Returns the tree with the leaves at the given paths replaced; all paths must be there.

    >>> replace({"a": {"kernel": 1, "bias": 2}}, {"a/bias": 3})
    {'a': {'bias': 3, 'kernel': 1}}
    """
    return _boxes.map_named(changed.get, tree)


def along(kept: Any, layer: FilterLayer, path: str, leaf: Any) -> jax.Array:
    """Shapes a choice of a layer's filters so that it goes along their axis of one of its leaves.

    Args:
        kept: boolean (num_filters,).
        layer: the layer.
        path: path of the leaf: the kernel, its bias, or the scale or shift behind it.
        leaf: the leaf itself; all but the kernel have the axes of the layer's outputs.
    """
    axis = layer.axis if path == layer.kernel else 0
    return jnp.reshape(kept, [-1 if i == axis % leaf.ndim else 1 for i in range(leaf.ndim)])


def kernels(
    tree: Any, channels: Channels, paths: Iterable[str] | None = None, *, argument: str = "params"
) -> dict[str, Any]:
    """Returns the kernels of some layers by path, by default of all, with filters last.

    Args:
        tree: the params, or a pytree shaped like them.
        channels: the model's channels.
        paths: which layers.
        argument: what errors call the tree.

    Raises:
        ValueError: a tree without such a kernel, or with another number of filters in it.
    """
    leaves = masks.leaf_paths(tree)
    chosen = {}
    for path in channels.layers if paths is None else paths:
        if path not in leaves:
            raise ValueError(
                f"{argument}: have no leaf {path!r}, a kernel of the layers. Trace the model whose "
                "params these belong to."
            )
        num_filters = channels.layers[path].num_filters
        axis = channels.layers[path].axis
        if leaves[path].ndim < 2 or leaves[path].shape[axis] != num_filters:
            raise ValueError(
                f"{argument}: kernel {path!r} has shape {leaves[path].shape}, expected "
                f"{num_filters} filters along axis {axis}. Trace the model whose params these "
                "belong to."
            )
        chosen[path] = jnp.moveaxis(leaves[path], axis, -1) if axis != -1 else leaves[path]
    return chosen
