"""Floors: the weights that a layer keeps whatever the global threshold says."""

from __future__ import annotations

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp

from ntksap_jax import _top_ranks, masks
from ntksap_jax.types import Mask


def check(
    counts: int | None, mask: Mask, scope: Any, *, min_weights: int, min_channels: int
) -> None:
    """Raises unless the floors fit the scope and, where `counts` is given, leave room below it.

    Raises:
        ValueError: with the name of the floor.
    """
    floors = {"min_weights": min_weights, "min_channels": min_channels}
    for name, floor in floors.items():
        if not isinstance(floor, numbers.Integral) or floor < 0:
            raise ValueError(
                f"{name}: got {floor!r}, expected an integer of at least 0 (no floor)."
            )
        if floor and scope != "global":
            raise ValueError(
                f"{name}: got {floor} with scope {scope!r}, which sets by itself how many weights "
                "stay where. Floors go with scope='global'; pass 0."
            )
    leaves = masks.leaf_paths(mask)
    if min_channels:
        for path, leaf in leaves.items():
            if leaf.ndim < 2:
                raise ValueError(
                    f"min_channels: leaf {path!r} of shape {leaf.shape} has no inputs and outputs. "
                    "Leave it out with masks.create(params, exclude=...)."
                )
    if counts is None or not (min_weights or min_channels):
        return
    protected = 0
    for leaf in leaves.values():
        ends = sum(min(min_channels, size) for size in leaf.shape[-2:]) if min_channels else 0
        protected += min(math.prod(leaf.shape), max(min_weights, ends))
    if protected > counts:
        raise ValueError(
            f"min_weights={min_weights}, min_channels={min_channels}: these floors may take "
            f"{protected} weights in {len(leaves)} leaves, but only {counts} are kept. Lower the "
            "floors, or keep more weights."
        )


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
