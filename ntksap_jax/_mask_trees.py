"""Trees shaped like a mask: leaves by path, and what is done at the prunable ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from ntksap_jax import _boxes
from ntksap_jax.types import Mask, Params


def leaf_paths(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree by path, such as `"block_0/conv1/kernel"`; `None` is no leaf.

    >>> leaf_paths({"dense": {"kernel": 1, "bias": None}})
    {'dense/kernel': 1}
    """
    return dict(_boxes.named(tree))


def map_prunable(fn: Callable[..., Any], mask: Mask, *trees: Any) -> Any:
    """Applies `fn(mask_leaf, *leaves)` at every prunable leaf and puts `None` elsewhere.

    Args:
        fn: what to do at a prunable leaf.
        mask: decides which leaves are prunable, and the structure of the result.
        *trees: params, scores or masks of the same structure; their other leaves are ignored.

    Returns:
        A pytree shaped like `mask`.

    >>> import jax.numpy as jnp
    >>> mask = {"kernel": jnp.array([True, False]), "bias": None}
    >>> params = {"kernel": jnp.array([3, 4]), "bias": 9}
    >>> map_prunable(lambda m, p: int(jnp.sum(m * p)), mask, params)
    {'bias': None, 'kernel': 3}
    """
    return jax.tree.map(
        lambda m, *leaves: None if m is None else fn(m, *leaves),
        mask,
        *trees,
        is_leaf=is_none,
    )


def merge(weights: Any, params: Params) -> Params:
    """Returns params with the prunable leaves taken from `weights`.

    Args:
        weights: pytree shaped like a mask: an array per prunable leaf, `None` elsewhere.
        params: where the other leaves come from.

    >>> merge({"kernel": 1.0, "bias": None}, {"kernel": 2.0, "bias": 3.0})
    {'bias': 3.0, 'kernel': 1.0}
    """
    return jax.tree.map(lambda w, p: p if w is None else w, weights, params, is_leaf=is_none)


def is_none(leaf: Any) -> bool:
    return leaf is None
