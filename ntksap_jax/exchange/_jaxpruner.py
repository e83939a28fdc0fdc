"""Masks in the form of jaxpruner: arrays of uint8, and `None` where nothing is pruned.

Source: Lee et al., "JaxPruner: a concise library for sparsity research" (2023) and its code.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax import _boxes, masks
from ntksap_jax.types import Mask, Params


def to_jaxpruner(mask: Mask) -> Any:
    """Returns a mask as jaxpruner holds it: arrays of uint8, 1 where a weight is kept, and `None`.

    It goes into jaxpruner's state as `state._replace(masks=to_jaxpruner(mask))`, and to its
    `apply_masks(params, masks, is_packed=False)`.

    Raises:
        TypeError: a leaf that is not a boolean array.

    >>> import jax.numpy as jnp
    >>> to_jaxpruner({"kernel": jnp.array([[True, False]]), "bias": None})
    {'bias': None, 'kernel': Array([[1, 0]], dtype=uint8)}
    """
    masks.check(mask, mask)
    return jax.tree.map(lambda m: jnp.asarray(np.asarray(m, np.uint8)), mask)


def from_jaxpruner(jaxpruner_masks: Any, *, like: Params) -> Mask:
    """Returns one of jaxpruner's masks as ours.

    Args:
        jaxpruner_masks: the `masks` of jaxpruner's state, packed into bits (its `use_packed_masks`)
            or not.
        like: the params that the mask is for.

    Returns:
        The mask.

    Raises:
        ValueError: another tree than that of the params, another shape, or an entry that is
            neither 0 nor 1; the leaf is named.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.ones((1, 2)), "bias": jnp.zeros(2)}
    >>> from_jaxpruner({"kernel": jnp.array([[1, 0]], jnp.uint8), "bias": None}, like=params)
    {'bias': None, 'kernel': Array([[ True, False]], dtype=bool)}
    """
    shapes = {path: np.shape(leaf) for path, leaf in masks.leaf_paths(like).items()}

    def from_leaf(path: str, leaf: Any) -> jax.Array:
        array, shape = np.asarray(leaf), shapes.get(path)
        if shape is not None and array.shape != shape and array.shape == _packed_shape(shape):
            array = np.unpackbits(array.astype(np.uint8), count=math.prod(shape)).reshape(shape)
        if not np.isin(array, (0, 1)).all():
            raise ValueError(
                f"jaxpruner_masks: leaf {path!r} has entries other than 0 and 1. Pass the masks of "
                "jaxpruner's state, and as `like` the params they are for."
            )
        return jnp.asarray(array.astype(bool))

    mask = _boxes.map_named(from_leaf, jaxpruner_masks)
    masks.check(mask, like)
    return mask


def _packed_shape(shape: tuple[int, ...]) -> tuple[int]:
    """Shape of what `jnp.packbits` makes of an array."""
    return (math.ceil(math.prod(shape) / 8),)
