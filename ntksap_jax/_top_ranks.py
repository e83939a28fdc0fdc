"""The exact selection of the highest scores: bisection on the bits of floating-point numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntksap_jax import _placement


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
    lowest_bound = _placement.vary_like(jnp.zeros(count.shape, unsigned), count)
    bound = jax.lax.fori_loop(0, bits, set_bit, lowest_bound)
    above, tied = [r > bound for r in ranks], [r == bound for r in ranks]
    places = count - total(above)

    def all_tied() -> list[jax.Array]:
        return [a | t for a, t in zip(above, tied, strict=True)]

    def first_tied() -> list[jax.Array]:
        return [a | t for a, t in zip(above, _first(tied, sized(tied), places, axis), strict=True)]

    # Ties at the threshold are rare, and finding the first of them takes as long as the rest.
    return jax.lax.cond(jnp.all(total(tied) <= places), all_tied, first_tied)


def _first(
    tied: Sequence[jax.Array], sizes: Sequence[jax.Array], places: jax.Array, axis: int | None
) -> list[jax.Array]:
    """Returns the first of those tied, as many as there are places for, in order of position.

    By bisection as well, on the position up to which they are taken: it needs nothing but counts,
    where a cumulative sum needs all the entries before, and so the parts on other devices.
    """
    rooms = []
    for taken in sizes:
        rooms.append(places)
        places = places - _sum(taken, axis)
    bits = max(t.size for t in tied).bit_length()

    def set_bit(i: jax.Array, bounds: list[jax.Array]) -> list[jax.Array]:
        bit = jnp.uint32(1) << (bits - 1 - i).astype(jnp.uint32)
        highers = [bound | bit for bound in bounds]
        fits = [
            _sum(jnp.where(_positions(taken.shape, axis) < higher, taken, 0), axis) <= room
            for higher, taken, room in zip(highers, sizes, rooms, strict=True)
        ]
        return [jnp.where(*each) for each in zip(fits, highers, bounds, strict=True)]

    # The highest bounds below which there is room for all.
    none = _placement.vary_like([jnp.zeros(r.shape, jnp.uint32) for r in rooms], (rooms, sizes))
    bounds = jax.lax.fori_loop(0, bits, set_bit, none)
    return [t & (_positions(t.shape, axis) < b) for t, b in zip(tied, bounds, strict=True)]


def _positions(shape: tuple[int, ...], axis: int | None) -> jax.Array:
    """The position of each entry along an axis, or its flat index, without reshaping."""
    if axis is not None:
        return jax.lax.broadcasted_iota(jnp.uint32, shape, axis % len(shape))
    flat = jnp.zeros(shape, jnp.uint32)
    for i, size in enumerate(shape):
        flat = flat * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, i)
    return flat


def _sum(x: jax.Array, axis: int | None) -> jax.Array:
    """Sums as int32, along one axis (kept with length 1) or over all.

    The sum of everything is taken over a few slices first, number by number: XLA on CPU does not
    use its vector units for a sum of integers to a scalar. Slices are cut from within sixteen parts
    of the inputs' axis, so that two to sixteen devices can hold parts of it and exchange nothing
    but their sums; any number of devices may hold parts of the outputs.
    """
    if axis is not None:
        return jnp.sum(x, axis, dtype=jnp.int32, keepdims=True)
    cut = max(0, x.ndim - 2)
    length = x.shape[cut] if x.ndim else 1
    parts = math.gcd(length, 16)  # Devices hold equal parts: where 16 do not divide, 8 may.
    slices = next((n for n in range(12, 1, -1) if length % (parts * n) == 0), None)
    if slices:
        x = x.reshape(*x.shape[:cut], parts, slices, -1, *x.shape[cut + 1 :])
        rows = (jax.lax.index_in_dim(x, i, cut + 1, keepdims=False) for i in range(slices))
        x = functools.reduce(jnp.add, (row.astype(jnp.int32) for row in rows))
    return jnp.sum(x, dtype=jnp.int32)


def lowest(ranks: Sequence[jax.Array], kept: Sequence[jax.Array]) -> jax.Array:
    """Returns the lowest rank that is kept; `highest` where none is."""
    none = highest(ranks[0].dtype)
    pairs = zip(ranks, kept, strict=True)
    return jnp.min(jnp.stack([jnp.min(jnp.where(k, r, none)) for r, k in pairs]))
