"""Magnitude: keep the weights that are largest in absolute value. Needs the weights, no data."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ntksap_jax import masks
from ntksap_jax.types import Batch, Key, Mask, Metrics, Params, ScoreFn, Scores


def magnitude() -> ScoreFn:
    """Scores a weight by |θ|.

    Source: Han et al., "Learning both weights and connections", NeurIPS 2015; at initialisation it
    is the baseline of Frankle et al., "Pruning neural networks at initialization", ICLR 2021.

    Returns:
        The criterion; it ignores the key and the batch.

    >>> import jax.numpy as jnp
    >>> mask = {"kernel": jnp.array([True, True, False])}
    >>> scores, _ = magnitude()(None, {"kernel": jnp.array([-3.0, 2.0, 7.0])}, mask, None)
    >>> scores["kernel"].tolist()
    [3.0, 2.0, 0.0]
    """

    def score(key: Key, params: Params, mask: Mask, batch: Batch) -> tuple[Scores, Metrics]:
        del key, batch
        return masks.map_prunable(lambda m, p: _size(p) * m, mask, params), {}

    return score


def _size(p: jax.Array) -> jax.Array:
    """|θ|, of integers and 8-bit floats in float32: that of int8's -128 is no int8."""
    is_coarse = p.dtype.itemsize == 1 or not jnp.issubdtype(p.dtype, jnp.inexact)
    return jnp.abs(p.astype(jnp.float32) if is_coarse else p)
