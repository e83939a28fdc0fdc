"""Trees of the same leaves in other containers: dicts, `nnx.State`s, boxes of linen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.tree_util import GetAttrKey


def name(path: Any) -> str:
    """Returns the name of what a path of a tree leads to, such as `"conv/kernel"`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """Returns the leaves with their names, in order.

    A box around an array, as `nn.Partitioned` and `nnx.Param` are, adds nothing to its name.

    Args:
        tree: pytree.
        is_leaf: which nodes count as leaves, beside arrays.
    """
    either = lambda node: _is_box(node) or (is_leaf is not None and is_leaf(node))  # noqa: E731
    return [
        (name(path), leaf)
        for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=either)
        for leaf in jax.tree.leaves(node, is_leaf=is_leaf)
    ]


def map_named(fn: Callable[[str, Any], Any], tree: Any) -> Any:
    """Returns the tree with `fn(name, leaf)` in the place of each leaf."""
    return jax.tree.unflatten(jax.tree.structure(tree), [fn(*pair) for pair in named(tree)])


def _is_box(node: Any) -> bool:
    """Whether a node holds an array, or None in its place, as its `value`, and nothing else."""
    if isinstance(node, (tuple, list, Mapping, jax.Array)):
        return False
    leaves = jax.tree_util.tree_leaves_with_path(node, is_leaf=_is_none)
    return [path for path, _ in leaves] == [(GetAttrKey("value"),)]


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
    leaves = dict(named(tree, _is_none))
    names = [each for each, _ in named(like, _is_none)]
    if set(names) != set(leaves):
        return tree
    return jax.tree.unflatten(wanted, [leaves[each] for each in names])


def _is_none(leaf: Any) -> bool:
    return leaf is None
