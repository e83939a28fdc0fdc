"""Floors: the weights that a layer keeps whatever the global threshold says."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ntksap_jax import _top_ranks
from ntksap_jax._forms import Form


def protect(
    rank: jax.Array, score: jax.Array, form: Form, *, min_weights: int, min_channels: int
) -> jax.Array:
    """Raises the ranks of the weights of one leaf that the floors keep to the highest of all.

    They are at most max(min_weights, 2 · min_channels) weights of each layer.
    """
    top = _top_ranks.highest(rank.dtype)
    if min_channels:
        ends = _ends
        arranged = form.arrange(rank), form.arrange(score)
        for _ in form.stacked:
            ends = jax.vmap(ends, (0, 0, None))
        rank = jnp.where(form.restore(ends(*arranged, min_channels)), top, rank)
    if min_weights:
        axis = -1 if form.stacked else None
        [best] = _top_ranks.keep_highest([form.by_layer(rank)], min_weights, axis=axis)
        rank = jnp.where(form.restore_layers(best), top, rank)
    return rank


def _ends(rank: jax.Array, score: jax.Array, count: int) -> jax.Array:
    """Marks the best weight of each of the best channels of a layer, of both kinds."""
    outgoing = _best_of_best_channels(rank, score, count)
    incoming = _best_of_best_channels(rank.swapaxes(-1, -2), score.swapaxes(-1, -2), count)
    return outgoing | incoming.swapaxes(-1, -2)


def _best_of_best_channels(rank: jax.Array, score: jax.Array, count: int) -> jax.Array:
    """Marks the best weight of each of the `count` best channels, which the last axis lists."""
    by_channel = rank.reshape(-1, rank.shape[-1])
    live = by_channel > 0
    sums = jnp.sum(jnp.where(live, score.reshape(by_channel.shape), 0), axis=0)
    channel_ranks = jnp.where(live.any(axis=0), _top_ranks.rank(sums), 0)
    # Both take the first among equals.
    _, channels = jax.lax.top_k(channel_ranks, min(count, len(channel_ranks)))
    best = by_channel.argmax(axis=0)[channels]
    marked = jnp.zeros(by_channel.shape, bool).at[best, channels].set(True)
    return (marked & live).reshape(rank.shape)
