"""The exact selection of the highest scores: bisection on the bits of floating-point numbers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def rank(score: jax.Array) -> jax.Array:
    """Maps floats to unsigned integers >= 1 in the same order; NaN to 1.

    Non-negative floats are ordered like their bits; negative ones in reverse, below them.
    """
    bits = score.dtype.itemsize * 8
    unsigned = jnp.dtype(f"uint{bits}")
    sign = jnp.array(1 << (bits - 1), unsigned)
    raw = jax.lax.bitcast_convert_type(score, unsigned)
    # 0.0 and -0.0 are equal scores. (Not `score == 0`: XLA takes subnormal numbers for 0 there.)
    raw = jnp.where(raw == sign, jnp.zeros_like(raw), raw)
    ranked = jnp.where(raw >= sign, ~raw, raw | sign)
    return jnp.where(jnp.isnan(score), jnp.array(1, unsigned), ranked)


def unrank(ranked: jax.Array, dtype: Any) -> jax.Array:
    """The inverse of `rank`; the highest rank of all, which no number has, becomes +inf."""
    bits = ranked.dtype.itemsize * 8
    sign = jnp.array(1 << (bits - 1), ranked.dtype)
    raw = jnp.where(ranked >= sign, ranked ^ sign, ~ranked)
    value = jax.lax.bitcast_convert_type(raw, dtype)
    return jnp.where(~ranked == 0, jnp.array(jnp.inf, dtype), value)


def highest(dtype: Any) -> jax.Array:
    """The highest rank of all, above that of every number."""
    return ~jnp.zeros((), dtype)


@functools.partial(jax.jit, static_argnames="axis")
def keep_highest(
    ranks: Sequence[jax.Array],
    count: Any,
    *,
    sizes: Sequence[jax.Array] | None = None,
    axis: int | None = None,
) -> list[jax.Array]:
    """Keeps the highest ranks above 0 (which marks what was pruned before).

    Equal ranks are taken in order of position: earlier arrays first, then lower (flat) index.

    Args:
        ranks: the arrays, which share one threshold.
        count: how many to keep; all where there are fewer.
        sizes: how much each entry counts, 1 by default. Entries are then kept, from the highest on,
            as long as their sizes do not add up to more than `count`.
        axis: every slice of the one array along this axis has a threshold of its own, with `count`
            for each (it broadcasts against the array with this axis of length 1).

    Returns:
        Boolean arrays: what is kept.
    """
    unsigned = ranks[0].dtype
    bits = unsigned.itemsize * 8

    def sized(chosen: Sequence[jax.Array]) -> list[jax.Array]:
        if sizes is None:
            return list(chosen)
        return [jnp.where(c, size, 0) for c, size in zip(chosen, sizes, strict=True)]

    def total(chosen: Sequence[jax.Array]) -> jax.Array:
        return sum((_sum(x, axis) for x in sized(chosen)), jnp.int32(0))

    count = jnp.minimum(count, total([r > 0 for r in ranks]))

    def set_bit(i: jax.Array, bound: jax.Array) -> jax.Array:
        higher = bound | (jnp.array(1, unsigned) << (bits - 1 - i).astype(unsigned))
        return jnp.where(total([r >= higher for r in ranks]) >= count, higher, bound)

    # The highest bound that at least `count` ranks reach, built from its highest bit down.
    bound = jax.lax.fori_loop(0, bits, set_bit, jnp.zeros(count.shape, unsigned))
    above, tied = [r > bound for r in ranks], [r == bound for r in ranks]
    places = count - total(above)

    def all_tied() -> list[jax.Array]:
        return [a | t for a, t in zip(above, tied, strict=True)]

    def first_tied() -> list[jax.Array]:
        left, kept = places, []
        for a, t, taken in zip(above, tied, sized(tied), strict=True):
            if axis is None:
                order = jnp.cumsum(taken.ravel(), dtype=jnp.int32).reshape(taken.shape)
            else:
                order = jnp.cumsum(taken, axis, dtype=jnp.int32)
            kept.append(a | (t & (order <= left)))
            left = left - _sum(taken, axis)
        return kept

    # Ties at the threshold are rare, and counting through all positions takes as long as the rest.
    return jax.lax.cond(jnp.all(total(tied) <= places), all_tied, first_tied)


def _sum(x: jax.Array, axis: int | None) -> jax.Array:
    """Sums as int32, along one axis (kept with length 1) or over all.

    The sum of everything is taken over a few slices first, number by number: XLA on CPU does not
    use its vector units for a sum of integers to a scalar.
    """
    if axis is not None:
        return jnp.sum(x, axis, dtype=jnp.int32, keepdims=True)
    rows = x.astype(jnp.int32)
    rows = rows.reshape(-1, *x.shape[-1:]) if x.ndim > 1 else rows.reshape(-1)
    whole = len(rows) // 8 * 8
    if not whole:
        return jnp.sum(rows)
    slices = rows[:whole].reshape(8, whole // 8, *rows.shape[1:])
    return jnp.sum(functools.reduce(jnp.add, slices)) + jnp.sum(rows[whole:])


def lowest(ranks: Sequence[jax.Array], kept: Sequence[jax.Array]) -> jax.Array:
    """Returns the lowest rank that is kept; `highest` where none is."""
    none = highest(ranks[0].dtype)
    pairs = zip(ranks, kept, strict=True)
    return jnp.min(jnp.stack([jnp.min(jnp.where(k, r, none)) for r, k in pairs]))
