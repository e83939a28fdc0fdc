"""Checks of the scores that a criterion returned."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax import _placement, _zeros, masks
from ntksap_jax.types import Mask, Params, ScoreFn, Scores


def check(
    scores: Scores,
    mask: Mask,
    *,
    advice: str = "Leave it out with masks.create(params, exclude=...), or prune less.",
    score: ScoreFn | None = None,
    params: Params = None,
) -> None:
    """Raises unless the scores can rank the weights; for concrete arrays.

    Args:
        scores: what a criterion returned.
        mask: the mask that it was given.
        advice: what to do about a leaf of zeros.
        score: the criterion, and the params that it was given: to find out, where scores are zero,
            which leaf is to blame.
        params: those params.

    Raises:
        ValueError: scores shaped unlike the mask; a score that is not finite; scores that are all
            zero, everywhere or in a leaf of which nothing was pruned yet. The leaf is named. (A
            leaf that earlier rounds cut off may well score zero: a collapsed layer is no error.)
    """
    wanted = {path: leaf.shape for path, leaf in masks.leaf_paths(mask).items()}
    given = {path: jnp.shape(leaf) for path, leaf in masks.leaf_paths(scores).items()}
    if given != wanted:
        odd = [path for path in wanted | given if wanted.get(path) != given.get(path)]
        raise ValueError(
            f"scores: leaf {odd[0]!r} has shape {given.get(odd[0])}, the mask "
            f"{wanted.get(odd[0])}. "
            "A criterion returns one array of scores for every prunable leaf, of its shape."
        )
    scored = masks.leaf_paths(scores)
    arrays, left = list(scored.values()), jax.tree.leaves(mask)
    if all(
        map(_placement.is_on_host, [*arrays, *left])
    ):  # Nothing to compile, and nothing to copy.
        facts = _score_facts(list(map(np.asarray, arrays)), list(map(np.asarray, left)), np)
    else:
        facts = jax.device_get(jax.jit(_score_facts, static_argnums=2)(arrays, left, jnp))
    for (path, leaf), (largest, _) in zip(scored.items(), facts, strict=True):
        if not np.isfinite(largest):
            num_bad = int(jnp.sum(~jnp.isfinite(leaf)))
            raise ValueError(
                f"scores: {num_bad} of {math.prod(wanted[path])} entries of leaf {path!r} are not "
                "finite. Check that the network's outputs are finite, and score in float32."
            )
    zero = [path for path, (largest, _) in zip(wanted, facts, strict=True) if largest == 0]
    dense = [path for path, (_, is_dense) in zip(wanted, facts, strict=True) if is_dense]
    useless = zero if len(zero) == len(wanted) else [path for path in zero if path in dense]
    if useless:
        others = f" and {len(useless) - 1} more" if len(useless) > 1 else ""
        cause = _zeros.cause(score, params, useless) if score is not None else None
        raise ValueError(
            f"scores: all zero in leaf {useless[0]!r}{others}, so they cannot rank its weights. "
            + (
                cause
                or "The outputs do not depend on it: is it used, and does no zero-initialised "
                f"weight or pruned layer cut it off? {advice}"
            )
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
