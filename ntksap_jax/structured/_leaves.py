"""Leaves of a pytree by path: read some, replace some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ntksap_jax import _boxes, masks
from ntksap_jax.structured.channels import Channels


def replace(tree: Any, changed: Mapping[str, Any]) -> Any:
    """Returns the tree with the leaves at the given paths replaced; all paths must be there.

    >>> replace({"a": {"kernel": 1, "bias": 2}}, {"a/bias": 3})
    {'a': {'bias': 3, 'kernel': 1}}
    """
    return _boxes.map_named(changed.get, tree)


def kernels(
    tree: Any, channels: Channels, paths: Iterable[str] | None = None, *, argument: str = "params"
) -> dict[str, Any]:
    """Returns the kernels of some layers by path, by default of all.

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
        if leaves[path].ndim < 2 or leaves[path].shape[-1] != num_filters:
            raise ValueError(
                f"{argument}: kernel {path!r} has shape {leaves[path].shape}, expected "
                f"{num_filters} filters along its last axis. Trace the model whose params these "
                "belong to."
            )
        chosen[path] = leaves[path]
    return chosen
