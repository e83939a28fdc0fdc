"""Trees of the same leaves in other containers: dicts, `nnx.State`s, boxes of linen."""

from __future__ import annotations

from typing import Any

import jax
from jax.tree_util import GetAttrKey


def name(path: Any) -> str:
    """Returns the name of a leaf, such as `"conv/kernel"`.

    A box around an array, as `nn.Partitioned` and `nnx.Param` are, adds nothing to it.
    """
    if len(path) > 1 and path[-1] == GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def fit(tree: Any, like: Any) -> Any:
    """Returns a tree in the containers of another, if their leaves have the same names.

    Args:
        tree: pytree; `None` counts as a leaf.
        like: likewise.

    Returns:
        The tree, as it is where names differ.
    """
    wanted: Any = jax.tree.structure(like, is_leaf=_is_none)
    if jax.tree.structure(tree, is_leaf=_is_none) == wanted:
        return tree
    leaves = _named(tree)
    names = list(_named(like))
    if set(names) != set(leaves):
        return tree
    return jax.tree.unflatten(wanted, [leaves[each] for each in names])


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_none)
    return {name(path): leaf for path, leaf in leaves}


def _is_none(leaf: Any) -> bool:
    return leaf is None
