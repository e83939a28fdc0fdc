"""Floors: the weights that a layer keeps whatever the global threshold says."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ntksap_jax import _top_ranks


def protect(rank: jax.Array, score: jax.Array, *, min_weights: int, min_channels: int) -> jax.Array:
    """Raises the ranks of the weights of one leaf that the floors keep to the highest of all.

    They are at most max(min_weights, 2 · min_channels) weights.
    """
    top = _top_ranks.highest(rank.dtype)
    if min_channels:
        outgoing = _best_of_best_channels(rank, score, min_channels)
        incoming = _best_of_best_channels(
            rank.swapaxes(-1, -2), score.swapaxes(-1, -2), min_channels
        ).swapaxes(-1, -2)
        rank = jnp.where(outgoing | incoming, top, rank)
    if min_weights:
        [best] = _top_ranks.keep_highest([rank], min_weights)
        rank = jnp.where(best, top, rank)
    return rank


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
