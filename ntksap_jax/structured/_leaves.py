"""Leaves of a pytree by path: read some, replace some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from ntksap_jax import masks
from ntksap_jax.structured.types import FilterLayer


def replace(tree: Any, changed: Mapping[str, Any]) -> Any:
    """Returns the tree with the leaves at the given paths replaced; all paths must be there.

    >>> replace({"a": {"kernel": 1, "bias": 2}}, {"a/bias": 3})
    {'a': {'bias': 3, 'kernel': 1}}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: changed.get(
            jax.tree_util.keystr(path, simple=True, separator="/"), leaf
        ),
        tree,
    )


def kernels(
    params: Any, layers: Mapping[str, FilterLayer], *, argument: str = "params"
) -> dict[str, Any]:
    """Returns the kernels of the layers by path; errors call the tree what `argument` says.

    Raises:
        ValueError: params without such a kernel, or with another number of filters in it.
    """
    leaves = masks.leaf_paths(params)
    found = {}
    for path, layer in layers.items():
        if path not in leaves:
            raise ValueError(
                f"{argument}: have no leaf {path!r}, a kernel of the layers. Trace the model whose "
                "params these belong to."
            )
        if leaves[path].ndim < 2 or leaves[path].shape[-1] != layer.num_filters:
            raise ValueError(
                f"{argument}: kernel {path!r} has shape {leaves[path].shape}, expected "
                f"{layer.num_filters} filters along its last axis. Trace the model whose params "
                "these belong to."
            )
        found[path] = leaves[path]
    return found
