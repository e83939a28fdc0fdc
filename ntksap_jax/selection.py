"""Selection: which weights a mask keeps, exactly, given their scores.

The count is exact: after selecting at density d, round(d · N) weights are kept, ties included. (The
authors' code prunes `score <= threshold`, hence every tie, and quits if the count is off by five.)
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ntksap_jax import masks
from ntksap_jax.types import Mask, Scores

Scope = Literal["global", "layer"]
"""What one threshold ranges over: all prunable leaves together, or each leaf by itself."""


def kept_counts(mask: Mask, density: float, *, scope: Scope = "global") -> Any:
    """Turns a density into the exact number of weights to keep: round(d · N).

    Args:
        mask: only its shapes are used.
        density: fraction of all prunable weights to keep, in (0, 1].
        scope: `"global"`: one number for the whole mask; `"layer"`: round(d · n) in each leaf.

    Returns:
        A Python integer, or for `"layer"` a pytree of them shaped like the mask.

    Raises:
        ValueError: a density outside (0, 1] or one that keeps no weight; an unknown scope.

    >>> import jax.numpy as jnp
    >>> mask = {"a": jnp.ones((10, 10), bool), "b": jnp.ones((5, 4), bool)}
    >>> kept_counts(mask, 0.05), kept_counts(mask, 0.05, scope="layer")
    (6, {'a': 5, 'b': 1})
    """
    if not 0.0 < density <= 1.0:
        raise ValueError(
            f"density: got {density!r}, expected the fraction of weights to keep, in (0, 1]. "
            "(For sparsity s pass 1 - s.)"
        )
    if scope == "global":
        counts: Any = round(float(density) * masks.num_prunable(mask))
    elif scope == "layer":
        counts = masks.map_prunable(lambda m: round(float(density) * math.prod(m.shape)), mask)
    else:
        raise ValueError(f"scope: got {scope!r}, expected 'global' or 'layer'.")
    if sum(jax.tree.leaves(counts)) == 0:
        raise ValueError(
            f"density: {density!r} of {masks.num_prunable(mask)} prunable weights rounds to none. "
            f"Keep at least 1: pass density >= {1 / masks.num_prunable(mask):.3g}."
        )
    return counts


def keep_top(scores: Scores, mask: Mask, counts: Any) -> tuple[Mask, jax.Array]:
    """Keeps the highest-scoring weights among those that the mask still keeps. Traceable.

    Exactly `counts` weights stay (all of them where fewer are left), never one that was pruned
    before. Equal scores are taken in order of position: earlier leaves first (in the order of
    `jax.tree.leaves`), then lower flat index. A NaN ranks lowest.

    The k-th highest score is found exactly by bisection on the bits of the floating-point numbers,
    in as many passes as they have bits; scores are copied once, as integers, and neither sorted nor
    concatenated.

    Args:
        scores: shaped like `mask`, floating point.
        mask: the current mask.
        counts: how many to keep, from `kept_counts`: an integer (array) for one threshold over all
            leaves, or a pytree of them for one per leaf.

    Returns:
        The new mask, and the lowest score that was kept (+inf where none was).

    >>> import jax.numpy as jnp
    >>> mask = {"w": jnp.array([True, True, True, False])}
    >>> new, threshold = keep_top({"w": jnp.array([0.5, 2.0, 2.0, 9.0])}, mask, 1)
    >>> new["w"].tolist(), float(threshold)
    ([False, True, False, False], 2.0)
    """
    for count in jax.tree.leaves(counts):
        if not jnp.issubdtype(jnp.result_type(count), jnp.integer):
            raise TypeError(
                f"counts: got {count!r}, expected numbers of weights to keep (integers), not a "
                "density. Make them with selection.kept_counts(mask, density)."
            )
    mask_leaves = jax.tree.leaves(mask)
    structure: Any = jax.tree.structure(mask)
    score_leaves = structure.flatten_up_to(scores)
    dtype = jnp.result_type(jnp.float32, *score_leaves)
    ranks = [
        jnp.where(m, _rank(jnp.asarray(s, dtype)), 0)
        for m, s in zip(mask_leaves, score_leaves, strict=True)
    ]
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(counts)):
        kept, lowest = _keep_top_ranks(ranks, counts)
    else:
        count_leaves = structure.flatten_up_to(counts)
        per_leaf = [_keep_top_ranks([r], c) for r, c in zip(ranks, count_leaves, strict=True)]
        kept = [leaf for (leaf,), _ in per_leaf]
        lowest = jnp.min(jnp.stack([low for _, low in per_leaf]))
    return jax.tree.unflatten(structure, kept), _unrank(lowest, dtype)


def _rank(score: jax.Array) -> jax.Array:
    """Maps floats to unsigned integers >= 1 in the same order; NaN to 1.

    Non-negative floats are ordered like their bits; negative ones in reverse, below them.
    """
    bits = score.dtype.itemsize * 8
    unsigned = jnp.dtype(f"uint{bits}")
    sign = jnp.array(1 << (bits - 1), unsigned)
    raw = jax.lax.bitcast_convert_type(score, unsigned)
    # 0.0 and -0.0 are equal scores. (Not `score == 0`: XLA takes subnormal numbers for 0 there.)
    raw = jnp.where(raw == sign, jnp.zeros_like(raw), raw)
    rank = jnp.where(raw >= sign, ~raw, raw | sign)
    return jnp.where(jnp.isnan(score), jnp.array(1, unsigned), rank)


def _unrank(rank: jax.Array, dtype: Any) -> jax.Array:
    bits = rank.dtype.itemsize * 8
    sign = jnp.array(1 << (bits - 1), rank.dtype)
    raw = jnp.where(rank >= sign, rank ^ sign, ~rank)
    value = jax.lax.bitcast_convert_type(raw, dtype)
    # The highest rank of all belongs to no number: it is the bound where nothing was kept.
    return jnp.where(~rank == 0, jnp.array(jnp.inf, dtype), value)


def _keep_top_ranks(ranks: list[jax.Array], count: Any) -> tuple[list[jax.Array], jax.Array]:
    """Keeps the `count` highest ranks above 0 (already pruned); also returns the lowest kept."""
    unsigned = ranks[0].dtype
    bits = unsigned.itemsize * 8

    def num_at_least(bound: jax.Array) -> jax.Array:
        return sum((jnp.sum(rank >= bound, dtype=jnp.int32) for rank in ranks), jnp.int32(0))

    count = jnp.minimum(count, num_at_least(jnp.array(1, unsigned)))

    def set_bit(i: jax.Array, bound: jax.Array) -> jax.Array:
        higher = bound | (jnp.array(1, unsigned) << (bits - 1 - i).astype(unsigned))
        return jnp.where(num_at_least(higher) >= count, higher, bound)

    # The highest bound that at least `count` ranks reach, built from its highest bit down.
    bound = jax.lax.fori_loop(0, bits, set_bit, jnp.array(0, unsigned))
    places = count - sum(jnp.sum(rank > bound, dtype=jnp.int32) for rank in ranks)

    kept = []
    for rank in ranks:
        tied = rank == bound
        order = jnp.cumsum(tied.ravel(), dtype=jnp.int32).reshape(tied.shape)
        kept.append((rank > bound) | (tied & (order <= places)))
        places = places - jnp.sum(tied, dtype=jnp.int32)
    return kept, bound


def select(scores: Scores, mask: Mask, *, density: float, scope: Scope = "global") -> Mask:
    """Keeps exactly round(density · N) weights: those with the highest scores, which it checks.

    The checked form of `kept_counts` and `keep_top`, for concrete arrays.

    Args:
        scores: shaped like `mask`; higher = keep.
        mask: the current mask; the new one is a subset of it.
        density: fraction of *all* prunable weights to keep, in (0, 1].
        scope: what one threshold ranges over: `"global"` or `"layer"`.

    Returns:
        The new mask.

    Raises:
        ValueError: scores that `check_scores` rejects; a density outside (0, 1], or above that of
            `mask`, since masks only ever shrink.

    >>> import jax.numpy as jnp
    >>> mask = {"w": jnp.ones(4, bool)}
    >>> select({"w": jnp.array([0.1, 0.4, 0.3, 0.2])}, mask, density=0.5)["w"].tolist()
    [False, True, True, False]
    """
    counts = kept_counts(mask, density, scope=scope)
    check_scores(scores, mask)
    check_counts(counts, mask)
    return keep_top(scores, mask, counts)[0]


def check_counts(counts: Any, mask: Mask) -> None:
    """Raises if a concrete mask has fewer weights left than should be kept.

    Raises:
        ValueError: masks only ever shrink, so that the counts cannot be reached.

    >>> import jax.numpy as jnp
    >>> check_counts(3, {"w": jnp.array([True, False, True, False])})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: density: asks for 3 weights to be kept, but the mask has only 2 left; ...
    """
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(counts)):
        wanted, left = {"": counts}, {"": masks.num_kept(mask)}
    else:
        wanted = masks.leaf_paths(counts)
        left = {path: masks.num_kept(leaf) for path, leaf in masks.leaf_paths(mask).items()}
    for path, count in wanted.items():
        if count > left[path]:
            raise ValueError(
                f"density: asks for {count} weights to be kept, but the mask has only {left[path]} "
                f"left{f' in leaf {path!r}' if path else ''}; masks only ever shrink. Pass a lower "
                "density, or start from masks.create(params)."
            )


def check_scores(scores: Scores, mask: Mask) -> None:
    """Raises unless the scores can rank the weights; for concrete arrays.

    Raises:
        ValueError: scores shaped unlike the mask; a score that is not finite; scores that are all
            zero, everywhere or in a leaf of which nothing was pruned yet. The leaf is named. (A
            leaf that earlier rounds cut off may well score zero: a collapsed layer is no error.)

    >>> import jax.numpy as jnp
    >>> check_scores(
    ...     {"w": jnp.array([1.0, jnp.nan])}, {"w": jnp.ones(2, bool)})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: scores: 1 of 2 entries of leaf 'w' are not finite. ...
    """
    wanted = {path: leaf.shape for path, leaf in masks.leaf_paths(mask).items()}
    found = {path: jnp.shape(leaf) for path, leaf in masks.leaf_paths(scores).items()}
    if found != wanted:
        odd = [path for path in wanted | found if wanted.get(path) != found.get(path)]
        raise ValueError(
            f"scores: leaf {odd[0]!r} has shape {found.get(odd[0])}, the mask "
            f"{wanted.get(odd[0])}. "
            "A criterion returns one array of scores for every prunable leaf, of its shape."
        )
    facts = jax.device_get(_score_facts(jax.tree.leaves(scores), jax.tree.leaves(mask)))
    for path, (num_bad, _, _) in zip(wanted, facts, strict=True):
        if num_bad:
            raise ValueError(
                f"scores: {num_bad} of {math.prod(wanted[path])} entries of leaf {path!r} are not "
                "finite. Check that the network's outputs are finite, and score in float32."
            )
    zero = [path for path, (_, is_zero, _) in zip(wanted, facts, strict=True) if is_zero]
    dense = [path for path, (*_, is_dense) in zip(wanted, facts, strict=True) if is_dense]
    useless = zero if len(zero) == len(wanted) else [path for path in zero if path in dense]
    if useless:
        raise ValueError(
            f"scores: all zero in leaf {useless[0]!r}, so they cannot rank its weights. The "
            "outputs do not depend on it: is it used, and does no zero-initialised weight or "
            "pruned layer cut it off? Leave it out with masks.create(params, exclude=...), or "
            "prune less."
        )


@jax.jit
def _score_facts(scores: list[Any], mask: list[Any]) -> list[tuple[Any, Any, Any]]:
    """Per leaf: the number of non-finite scores, whether all are zero, whether none was pruned."""
    return [
        (jnp.sum(~jnp.isfinite(s)), jnp.all(s == 0), jnp.all(m))
        for s, m in zip(scores, mask, strict=True)
    ]
