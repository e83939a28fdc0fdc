"""Selection: which weights a mask keeps, exactly, given their scores.

The count is exact: after selecting at density d, round(d · N) weights are kept, ties included. (The
authors' code prunes `score <= threshold`, hence every tie, and quits if the count is off by five.)
What one threshold ranges over is the *scope*: the whole mask, a layer, a filter, N:M groups; or
whole blocks live or die together.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax import _floors, _host_selection, _placement, _top_ranks, masks, scopes
from ntksap_jax.scopes import Block as Block
from ntksap_jax.scopes import NofM as NofM
from ntksap_jax.scopes import Scope as Scope
from ntksap_jax.types import Mask, Scores


def kept_counts(
    mask: Mask,
    density: float,
    *,
    scope: Scope = "global",
    min_weights: int = 0,
    min_channels: int = 0,
) -> Any:
    """Turns a density into the exact number of weights to keep: round(d · N).

    Args:
        mask: only its shapes are used.
        density: fraction of all prunable weights to keep, in (0, 1].
        scope: `"global"`: one number for the whole mask; `"layer"`: round(d · n) in each leaf, and
            `"filter"`: round(d · fan_in) in each output channel of a leaf, but at least 1, so that
            a low density empties no small layer or filter; `NofM(n, m)`:
            round(d · m) of every m along the inputs, for densities of n / m and above;
            `Block(inputs, outputs)`: as many whole blocks as round(d · N) weights hold.
        min_weights: floor, see `keep_top`.
        min_channels: floor, see `keep_top`.

    Returns:
        A Python integer, or for `"layer"` and `"filter"` a pytree of them shaped like the mask.

    Raises:
        ValueError: a density outside (0, 1], one that keeps no weight or block, or less than a
            `NofM` does; a scope that is unknown or does not divide a leaf; floors that take more
            weights than are kept, or that the scope rules out.

    >>> import jax.numpy as jnp
    >>> mask = {"a": jnp.ones((10, 10), bool), "b": jnp.ones((5, 4), bool)}
    >>> kept_counts(mask, 0.05), kept_counts(mask, 0.05, scope="layer")
    (6, {'a': 5, 'b': 1})
    >>> kept_counts(mask, 0.3, scope="filter"), kept_counts(mask, 0.7, scope=NofM(2, 5))
    ({'a': 3, 'b': 2}, 4)
    """
    if not 0.0 < density <= 1.0:
        raise ValueError(
            f"density: got {density!r}, expected the fraction of weights to keep, in (0, 1]. "
            "(For sparsity s pass 1 - s.)"
        )
    scopes.check(scope, mask)
    total = masks.num_prunable(mask)
    counts: Any = round(float(density) * total)
    if scope in ("layer", "filter"):
        counts = masks.map_prunable(
            lambda m: max(1, round(float(density) * scopes.grouped_shape(scope, m.shape)[-2])), mask
        )
    elif isinstance(scope, NofM):
        if density < scope.n / scope.m and not math.isclose(density, scope.n / scope.m):
            raise ValueError(
                f"density: got {density!r}, but {scope} keeps {scope.n / scope.m:.6g} of the "
                f"weights. Pass density={scope.n / scope.m:.6g} (or more, in an earlier round)."
            )
        counts = max(scope.n, round(float(density) * scope.m))
    if sum(jax.tree.leaves(counts)) == 0:
        raise ValueError(
            f"density: {density!r} of {total} prunable weights rounds to none. "
            f"Keep at least 1: pass density >= {1 / total:.3g}."
        )
    if isinstance(scope, Block):
        path, size = scopes.largest_block(scope, mask)
        if counts < size:
            raise ValueError(
                f"density: {density!r} of {total} prunable weights is {counts}, which is less than "
                f"one block of leaf {path!r} ({size} weights). Pass density >= {size / total:.3g}, "
                "smaller blocks, or leave the leaf out with masks.create(params, exclude=...)."
            )
    _floors.check(counts, mask, scope, min_weights=min_weights, min_channels=min_channels)
    return counts


def keep_top(
    scores: Scores,
    mask: Mask,
    counts: Any,
    *,
    scope: Scope = "global",
    min_weights: int = 0,
    min_channels: int = 0,
) -> tuple[Mask, jax.Array]:
    """Keeps the highest-scoring weights among those that the mask still keeps. Traceable.

    Exactly `counts` weights stay (all of them where fewer are left), never one that was pruned
    before. Equal scores are taken in order of position: earlier leaves first (in the order of
    `jax.tree.leaves`), then lower flat index. A NaN ranks lowest.

    The k-th highest score is found exactly by bisection on the bits of the floating-point numbers,
    in as many passes as they have bits; scores are copied once, as integers, and neither sorted nor
    concatenated. Where they are sharded, devices exchange only counts.

    Args:
        scores: shaped like `mask`, floating point.
        mask: the current mask.
        counts: how many to keep, from `kept_counts` with the same scope: an integer (array), or a
            pytree of them for one per leaf. May be traced.
        scope: what one threshold ranges over. (With `"global"`, a pytree of counts means one
            threshold per leaf, as `"layer"` does.)
        min_weights: each leaf keeps at least so many weights, its best (all, where there are
            fewer). The total stays exact: the others compete for what is left of it.
        min_channels: in each leaf at least so many output channels keep an incoming weight, and so
            many input channels an outgoing one (all, where there are fewer): the best weights of
            the channels whose scores have the highest sum. A layer's channels being connected does
            not imply that one path leads through all layers.

    Returns:
        The new mask, and the lowest score that was kept (+inf where none was); for a `Block`, the
        lowest score of a block.

    Raises:
        TypeError: counts that are no integers, or of another form than the scope needs.
        ValueError: a scope that does not divide a leaf, or does not go with floors.

    >>> import jax.numpy as jnp
    >>> mask = {"w": jnp.array([True, True, True, False])}
    >>> new, threshold = keep_top({"w": jnp.array([0.5, 2.0, 2.0, 9.0])}, mask, 1)
    >>> new["w"].tolist(), float(threshold)
    ([False, True, False, False], 2.0)
    >>> scores, mask = {"w": jnp.array([[1.0], [4.0], [3.0], [2.0]])}, {"w": jnp.ones((4, 1), bool)}
    >>> keep_top(scores, mask, 1, scope=NofM(1, 2))[0]["w"].ravel().tolist()
    [False, True, True, False]
    >>> keep_top(scores, mask, 2, scope=Block(2, 1))[0]["w"].ravel().tolist()
    [True, True, False, False]
    """
    for count in jax.tree.leaves(counts):
        if not jnp.issubdtype(jnp.result_type(count), jnp.integer):
            raise TypeError(
                f"counts: got {count!r}, expected numbers of weights to keep (integers), not a "
                "density. Make them with selection.kept_counts(mask, density)."
            )
    scopes.check(scope, mask)
    if scope == "global" and not _is_single(counts):
        scope = "layer"
    structure: Any = jax.tree.structure(mask)
    form: Any = structure if scope in ("layer", "filter") else jax.tree.structure(0)
    if form != jax.tree.structure(counts):
        raise TypeError(
            f"counts: a tree {jax.tree.structure(counts)}, but scope {scope!r} needs {form}. Make "
            "them with selection.kept_counts(mask, density, scope=...) for the same mask and scope."
        )
    _floors.check(None, mask, scope, min_weights=min_weights, min_channels=min_channels)
    masked = jax.tree.leaves(mask)
    dtype = jnp.result_type(jnp.float32, *structure.flatten_up_to(scores))
    scored = [jnp.asarray(score, dtype) for score in structure.flatten_up_to(scores)]

    if isinstance(scope, Block):
        kept, lowest = _keep_blocks(scored, masked, counts, scope)
    else:
        ranks = [jnp.where(m, _top_ranks.rank(s), 0) for m, s in zip(masked, scored, strict=True)]
        if scope == "global":
            floors = functools.partial(
                _floors.protect, min_weights=min_weights, min_channels=min_channels
            )
            kept = _top_ranks.keep_highest(list(map(floors, ranks, scored)), counts)
        else:
            per_leaf = [counts] * len(ranks) if isinstance(scope, NofM) else jax.tree.leaves(counts)
            kept = _keep_groups(ranks, per_leaf, scope)
        lowest = _top_ranks.lowest(ranks, kept)
    return jax.tree.unflatten(structure, kept), _top_ranks.unrank(lowest, dtype)


@functools.partial(jax.jit, static_argnames=("scope", "min_weights", "min_channels", "layout"))
def _keep_top_jitted(
    scores: Scores, mask: Mask, counts: Any, *, layout: _placement.Layout | None, **options: Any
) -> tuple[Mask, jax.Array]:
    new, lowest = keep_top(scores, mask, counts, **options)
    return _placement.constrain(new, layout), lowest


def keep_top_concrete(
    scores: Scores, mask: Mask, counts: Any, *, scope: Scope = "global", **floors: int
) -> tuple[Mask, jax.Array]:
    """`keep_top` for concrete, finite scores: by partition where they lie in the host's memory.

    The result is the same, ties included, in a third of the time: of scores that are all left, only
    those around the threshold are copied. Elsewhere (other devices, scopes, floors; scores that are
    spread over devices) it is `keep_top` under `jit`. The new mask lies where the old one does.

    Args:
        scores: as for `keep_top`; finite.
        mask: the current mask.
        counts: how many to keep, from `kept_counts` with the same scope.
        scope: what one threshold ranges over.
        **floors: `min_weights` and `min_channels`, as for `keep_top`.

    Returns:
        The new mask, and the lowest score that was kept.

    >>> import jax.numpy as jnp
    >>> mask = {"w": jnp.array([True, True, True, False])}
    >>> keep_top_concrete({"w": jnp.array([0.5, 2.0, 2.0, 9.0])}, mask, 1)[0]["w"].tolist()
    [False, True, False, False]
    """
    structure: Any = jax.tree.structure(mask)
    left, scored = jax.tree.leaves(mask), structure.flatten_up_to(scores)
    by_partition = scope == "global" and _is_single(counts) and not any(floors.values())
    if not by_partition or not all(map(_is_on_host, [*scored, *left])):
        layout = _placement.layout(mask)
        return _keep_top_jitted(scores, mask, counts, scope=scope, layout=layout, **floors)
    dtype = jnp.result_type(jnp.float32, *scored)
    kept, lowest = _host_selection.keep_highest(
        [np.asarray(score, dtype) for score in scored], list(map(np.asarray, left)), int(counts)
    )
    new = jax.tree.unflatten(structure, map(jnp.asarray, kept))
    return _placement.constrain(new, _placement.layout(mask)), jnp.asarray(lowest, dtype)


def _is_on_host(leaf: Any) -> bool:
    """Whether the host's memory holds all of it in one piece, so that NumPy copies nothing."""
    if not isinstance(leaf, jax.Array):
        return True
    whole = leaf.is_fully_addressable and not _placement.is_split(leaf)
    return whole and {d.platform for d in leaf.devices()} == {"cpu"}


def _is_single(counts: Any) -> bool:
    return jax.tree_util.treedef_is_leaf(jax.tree.structure(counts))


def _keep_groups(ranks: list[jax.Array], counts: list[Any], scope: Scope) -> list[jax.Array]:
    """One threshold a group of weights; all the groups of a leaf are bisected at once."""
    kept = []
    for rank, count in zip(ranks, counts, strict=True):
        if scope == "layer":
            kept += _top_ranks.keep_highest([rank], count)
            continue
        groups = rank.reshape(scopes.grouped_shape(scope, rank.shape))
        [top] = _top_ranks.keep_highest([groups], count, axis=-2)
        kept.append(top.reshape(rank.shape))
    return kept


def _keep_blocks(
    scores: list[jax.Array], mask: list[jax.Array], count: Any, block: Block
) -> tuple[list[jax.Array], jax.Array]:
    """One threshold over all blocks; a pruned weight adds nothing to its block's score or size."""
    sizes = [scopes.sum_blocks(block, m.astype(jnp.int32)) for m in mask]
    sums = [scopes.sum_blocks(block, jnp.where(m, s, 0)) for m, s in zip(mask, scores, strict=True)]
    ranks = [jnp.where(n > 0, _top_ranks.rank(s), 0) for n, s in zip(sizes, sums, strict=True)]
    chosen = _top_ranks.keep_highest(ranks, count, sizes=sizes)
    kept = [scopes.spread_blocks(block, c, m.shape) & m for c, m in zip(chosen, mask, strict=True)]
    return kept, _top_ranks.lowest(ranks, chosen)


def select(
    scores: Scores,
    mask: Mask,
    *,
    density: float,
    scope: Scope = "global",
    min_weights: int = 0,
    min_channels: int = 0,
) -> Mask:
    """Keeps exactly round(density · N) weights: those with the highest scores, which it checks.

    The checked form of `kept_counts` and `keep_top`, for concrete arrays.

    Args:
        scores: shaped like `mask`; higher = keep.
        mask: the current mask; the new one is a subset of it.
        density: fraction of *all* prunable weights to keep, in (0, 1].
        scope: what one threshold ranges over, and with it what is counted; see `kept_counts`.
        min_weights: each leaf keeps at least so many weights; see `keep_top`.
        min_channels: each leaf keeps at least so many channels connected; see `keep_top`.

    Returns:
        The new mask.

    Raises:
        ValueError: scores that `check_scores` rejects; what `kept_counts` raises; a density above
            that of `mask`, since masks only ever shrink.

    >>> import jax.numpy as jnp
    >>> mask = {"w": jnp.ones(4, bool)}
    >>> select({"w": jnp.array([0.1, 0.4, 0.3, 0.2])}, mask, density=0.5)["w"].tolist()
    [False, True, True, False]
    """
    options: Any = {"scope": scope, "min_weights": min_weights, "min_channels": min_channels}
    counts = kept_counts(mask, density, **options)
    check_scores(scores, mask)
    check_counts(counts, mask, scope=scope)
    return keep_top_concrete(scores, mask, counts, **options)[0]


def check_counts(counts: Any, mask: Mask, *, scope: Scope = "global") -> None:
    """Raises if a concrete mask has fewer weights left than should be kept.

    Args:
        counts: how many to keep, from `kept_counts` with the same scope.
        mask: the current mask.
        scope: what one threshold ranges over.

    Raises:
        ValueError: masks only ever shrink, so that the counts cannot be reached.

    >>> import jax.numpy as jnp
    >>> check_counts(3, {"w": jnp.array([True, False, True, False])})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: density: asks for 3 weights to be kept, but the mask has only 2 left; ...
    """
    leaves = masks.leaf_paths(mask)
    per_leaf = dict.fromkeys(leaves, counts) if _is_single(counts) else masks.leaf_paths(counts)
    if scope == "filter" or isinstance(scope, NofM):
        group = "a filter" if scope == "filter" else f"{scope.m} weights"
        rows = []
        for path, leaf in leaves.items():
            left = np.sum(np.reshape(leaf, scopes.grouped_shape(scope, leaf.shape)), axis=-2)
            rows.append((per_leaf[path], int(left.min()), f" in {group} of leaf {path!r}"))
    elif _is_single(counts):
        rows = [(counts, masks.num_kept(mask), "")]
    else:
        rows = [(per_leaf[p], masks.num_kept(m), f" in leaf {p!r}") for p, m in leaves.items()]
    for count, num_left, place in rows:
        if count > num_left:
            raise ValueError(
                f"density: asks for {count} weights to be kept, but the mask has only {num_left} "
                f"left{place}; masks only ever shrink. Pass a lower density, or start from "
                "masks.create(params)."
            )


def kept_range(counts: Any, mask: Mask, *, scope: Scope = "global") -> range:
    """Returns the numbers of weights that may be left after `keep_top` with concrete counts.

    It is one number, but for blocks, which may not fill the count.

    Args:
        counts: how many to keep, from `kept_counts` with the same scope.
        mask: only its shapes are used.
        scope: what one threshold ranges over.

    >>> import jax.numpy as jnp
    >>> mask = {"w": jnp.ones((8, 4), bool)}
    >>> kept_range(7, mask), kept_range(7, mask, scope=Block(2, 2)), kept_range(
    ...     2, mask, scope=NofM(2, 4))
    (range(7, 8), range(4, 8), range(16, 17))
    """
    total = int(np.sum(jax.tree.leaves(counts)))
    if isinstance(scope, Block):
        _, size = scopes.largest_block(scope, mask)
        return range(total - size + 1, total + 1)
    if isinstance(scope, NofM):
        total = counts * masks.num_prunable(mask) // scope.m
    elif scope == "filter":
        filters = masks.map_prunable(lambda m, count: count * m.shape[-1], mask, counts)
        total = sum(jax.tree.leaves(filters))
    return range(total, total + 1)


def check_scores(scores: Scores, mask: Mask) -> None:
    """Raises unless the scores can rank the weights; for concrete arrays.

    Args:
        scores: what a criterion returned.
        mask: the mask that it was given.

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
    scored = masks.leaf_paths(scores)
    arrays, left = list(scored.values()), jax.tree.leaves(mask)
    if all(map(_is_on_host, [*arrays, *left])):  # Nothing to compile, and nothing to copy.
        facts = _score_facts(list(map(np.asarray, arrays)), list(map(np.asarray, left)), np)
    else:
        facts = jax.device_get(jax.jit(_score_facts, static_argnums=2)(arrays, left, jnp))
    for (path, score), (largest, _) in zip(scored.items(), facts, strict=True):
        if not np.isfinite(largest):
            num_bad = int(jnp.sum(~jnp.isfinite(score)))
            raise ValueError(
                f"scores: {num_bad} of {math.prod(wanted[path])} entries of leaf {path!r} are not "
                "finite. Check that the network's outputs are finite, and score in float32."
            )
    zero = [path for path, (largest, _) in zip(wanted, facts, strict=True) if largest == 0]
    dense = [path for path, (_, is_dense) in zip(wanted, facts, strict=True) if is_dense]
    useless = zero if len(zero) == len(wanted) else [path for path in zero if path in dense]
    if useless:
        raise ValueError(
            f"scores: all zero in leaf {useless[0]!r}, so they cannot rank its weights. The "
            "outputs do not depend on it: is it used, and does no zero-initialised weight or "
            "pruned layer cut it off? Leave it out with masks.create(params, exclude=...), or "
            "prune less."
        )


def _score_facts(scores: list[Any], mask: list[Any], xp: Any) -> list[tuple[Any, Any]]:
    """Per leaf: the largest size of a score (NaN if one is not finite), whether none was pruned.

    `xp` is NumPy, or `jax.numpy`.
    """
    return [(_largest(s, xp), xp.min(m)) for s, m in zip(scores, mask, strict=True)]


def _largest(score: Any, xp: Any) -> Any:
    largest = xp.maximum(abs(xp.max(score)), abs(xp.min(score)))
    if xp is np:
        return largest
    # Where devices hold parts of the scores, the maximum of their maxima can lose a NaN.
    return jnp.where(jnp.all(jnp.isfinite(score)), largest, jnp.nan)
