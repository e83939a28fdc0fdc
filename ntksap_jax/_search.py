"""The search: score and select, round by round, down to the target density.

`prune` is the driver for programs and notebooks: it loops over compiled rounds in Python, reports
each one and can resume. `find_mask` is the same search as one traceable function, for use inside
your own `jit`. Both draw round t's randomness from `fold_in(key, t)`, so the same key gives the
same masks: bit for bit from the same compiled program, and up to rounding from another. (Rounding
can decide which of two weights at the threshold goes; finite differences feel it most, where a ReLU
flips.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ntksap_jax import (
    _boxes,
    _checks,
    _deprecated,
    _forms,
    _known_axes,
    _overlooked,
    _placement,
    _platform,
    _scores,
    _zeros,
    masks,
    schedules,
)
from ntksap_jax._draws import typed_key
from ntksap_jax.scopes import Scope, ScopeLike
from ntksap_jax.types import (
    Axes,
    Batch,
    Key,
    Mask,
    Metrics,
    Params,
    RoundInfo,
    ScoreFn,
    Scores,
)

ROUNDS = 20
"""Of a search that is given a density alone: what NTK-SAP's paper takes for CIFAR-10."""


@_deprecated.floors
def find_mask(
    key: Key,
    params: Params,
    score: ScoreFn,
    density: float | None = None,
    *,
    schedule: Any = None,
    mask: Mask | None = None,
    batch: Batch = None,
    scope: ScopeLike = "global",
    axes: Axes | None = None,
    regrow: bool = False,
) -> tuple[Mask, Metrics]:
    """Searches for a mask, all rounds in one `lax.scan`, to be traced by the caller's `jit`.

    On CPU, XLA runs the gradients of `jax.lax`'s convolutions inside loops 20 to 200 times slower
    than outside. Those of `ops.conv2d` are fast there too: `ntksap_jax.linen` puts it into a model;
    in functions of your own call it yourself, or search by `prune`.

    Args:
        key: PRNG key of the search.
        params: pytree of arrays; they may be traced.
        score: the criterion.
        density: as for `prune`, like `schedule`; both concrete.
        schedule: density after each round, in the place of `density`.
        mask: where to start from; by default `masks.create(params)`.
        batch: (inputs, labels) for criteria that need them.
        scope: as for `prune`, like `axes` and `regrow`.
        axes: what the axes of kernels mean.
        regrow: rank all prunable weights again in every round.

    Returns:
        The mask, and the metrics of every round, stacked: the criterion's own, and `"threshold"`.
        Scores are not checked (no value can be, under `jit`): a NaN ranks lowest.

    Raises:
        ValueError, TypeError: a schedule or mask that does not fit, at trace time.

    >>> import jax, jax.numpy as jnp
    >>> from ntksap_jax import criteria
    >>> @jax.jit
    ... def search_and_mask(key, params):
    ...     mask, _ = find_mask(key, params, criteria.magnitude(), schedule=[0.5, 0.25])
    ...     return masks.apply(mask, params)
    >>> search_and_mask(jax.random.key(0), {"kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]])})
    {'kernel': Array([[3., 0.],
           [0., 0.]], dtype=float32)}
    """
    key = typed_key(key)
    scope = Scope.of(scope)
    params, batch = _checks.native((params, batch))
    mask, plan, axes = _plan(params, mask, score, density, schedule, scope, axes)
    rounds = len(plan)
    everything = (key, params, mask, batch)
    key, params, mask, batch = _placement.vary_like(everything, everything)

    def body(mask: Mask, t_and_counts: tuple[jax.Array, Any]) -> tuple[Mask, Metrics]:
        t, counts = t_and_counts
        scores, metrics = score(jax.random.fold_in(key, t), params, mask, batch)
        mask, threshold = scope.keep_top(scores, _candidates(mask, regrow), counts, axes=axes)
        return mask, {**metrics, "threshold": threshold}

    stacked = jax.tree.map(lambda *counts: jnp.array(counts, jnp.int32), *plan)
    return jax.lax.scan(body, mask, (jnp.arange(rounds), stacked))


@_deprecated.floors
def prune(
    key: Key,
    params: Params,
    score: ScoreFn,
    density: float | None = None,
    *,
    schedule: Any = None,
    mask: Mask | None = None,
    start_round: int = 0,
    batch: Batch = None,
    scope: ScopeLike = "global",
    axes: Axes | None = None,
    regrow: bool = False,
    on_round: Callable[[RoundInfo, Mask], None] | None = None,
) -> tuple[Mask, list[RoundInfo]]:
    """Searches for a mask round by round, with checks, reports and the means to resume.

    The first round compiles everything, and the others reuse it. Masks are placed as the params
    are, on one device or sharded over several; see `sharding.shard_params`.

    Args:
        key: PRNG key of the search.
        params: pytree of arrays.
        score: the criterion.
        density: fraction of the prunable weights to keep, in (0, 1]; reached in 20 rounds, each of
            which keeps the same share of what is left: `schedules.exponential(density, rounds=20)`.
        schedule: in the place of `density`, the density after each round, such as
            `schedules.exponential(0.05, rounds=100)` or `[0.05]` for a single round.
        mask: where to start from; by default `masks.create(params)`.
        start_round: number of rounds already done. To resume, pass the mask that the last
            `on_round` call was given and its `info.round`, with the same key and schedule.
        batch: (inputs, labels) for criteria that need them.
        scope: what one threshold ranges over: `"global"`, `"layer"`, `"filter"` or one of
            `ntksap_jax.scopes`, such as `scopes.Global(min_channels=1)` or `scopes.NofM(2, 4)`.
        axes: what the axes of kernels mean, by path or pattern, such as `{"blocks": "sio"}`; see
            `ntksap_jax.axes`. Needed only where a scope depends on it and the criterion knows no
            network, or its network does not show it; a search says so then.
        regrow: rank all prunable weights again in every round, so that pruned ones may come back
            (FORCE: de Jorge et al., "Progressive skeletonization", ICLR 2021). The criterion is
            given the mask of the last round and must score the pruned weights too.
        on_round: called as `on_round(info, mask)` after every round, to report or to save.

    Returns:
        The mask, and the `RoundInfo` of every round done here.

    Raises:
        ValueError, TypeError: before anything is compiled: a schedule, mask or start_round that
            does not fit, a scope that does not divide a leaf, floors that cannot be met, or a call
            inside of `jit`. After a round: scores that are not finite or all zero; the leaf is
            named. With `regrow`, scores that are zero for every pruned weight.

    >>> import jax, jax.numpy as jnp
    >>> from ntksap_jax import criteria
    >>> params = {"kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]])}
    >>> mask, history = prune(jax.random.key(0), params, criteria.magnitude(), schedule=[0.5, 0.25])
    >>> mask["kernel"].tolist(), [info.num_kept for info in history]
    ([[True, False], [False, False]], [2, 1])
    """
    key = typed_key(key)
    if _placement.is_traced((jax.random.fold_in(key, 0), params, mask, batch)):
        raise TypeError(
            "prune: called inside of jit, vmap or another transformation, where no mask can be "
            "checked, reported or saved. Use ntksap_jax.find_mask there."
        )
    scope = Scope.of(scope)
    params, batch = _checks.native((params, batch))
    is_default = mask is None
    mask, plan, axes = _plan(params, mask, score, density, schedule, scope, axes)
    notes = _overlooked.notes(params, mask) if is_default else ()
    _check_start(mask, plan, start_round, scope, axes, regrow)
    # Placed as the params are: a mask placed otherwise would make the second round compile again.
    mask = masks.map_prunable(
        lambda m, p: m if _placement.of(p) is None else jax.device_put(m, _placement.of(p)),
        mask,
        params,
    )

    history = []
    for t in range(start_round, len(plan)):
        started = time.perf_counter()
        scores, metrics = score(jax.random.fold_in(key, t), params, mask, batch)
        try:
            _scores.check(scores, mask, score=score, params=params)
            if regrow:
                _check_regrowth(scores, mask)
        except ValueError as error:
            raise ValueError(f"round {t + 1} of {len(plan)}: {error}") from error
        mask, threshold = scope.keep_top_concrete(
            scores, _candidates(mask, regrow), plan[t], axes=axes
        )
        info = RoundInfo(
            round=t + 1,
            density=masks.density(mask),
            num_kept=masks.num_kept(mask),
            threshold=float(threshold),
            layer_densities=masks.layer_densities(mask, axes=axes),
            metrics={name: float(value) for name, value in metrics.items()},
            seconds=time.perf_counter() - started,
            notes=(*notes, *_zeros.notes(score, mask)) if t == start_round else (),
        )
        history.append(info)
        if on_round is not None:
            on_round(info, mask)
    return mask, history


def _candidates(mask: Mask, regrow: bool) -> Mask:
    """The weights that a round may keep."""
    return masks.map_prunable(jnp.ones_like, mask) if regrow else mask


def _plan(
    params: Params,
    mask: Mask | None,
    score: ScoreFn,
    density: float | None,
    schedule: Any,
    scope: Scope,
    axes: Axes | None,
) -> tuple[Mask, list[Any], Axes]:
    """Checks a search's arguments.

    Returns:
        The mask to start from, the counts of every round, and what the axes of the leaves mean.
    """
    if (density is None) == (schedule is None):
        raise ValueError(
            f"density: got density={density!r} and schedule={schedule!r}, expected one of the two: "
            "the final density, or the density after each round."
        )
    if density is not None:
        schedule = schedules.exponential(density, rounds=ROUNDS)
    _platform.warn_if_miscompiling()
    if mask is None:
        mask = masks.create(params)
    mask = _boxes.fit(mask, params)
    masks.check(mask, params)
    densities = schedules.check(schedule)
    if len(densities) > (num_weights := masks.num_prunable(mask)):
        given = (
            f"density: {density!r}, to be reached in" if density is not None else "schedule: got"
        )
        raise ValueError(
            f"{given} {len(densities)} rounds for {num_weights} prunable weights; expected at most "
            "one round a weight. Pass the density after each round: "
            f"schedule=schedules.exponential({densities[-1]:.6g}, rounds={num_weights})."
        )
    scope.check_last(float(densities[-1]))
    known = _axes_for(params, mask, score, scope, axes)
    return mask, [scope.counts(mask, float(d), axes=known) for d in densities], known


def _axes_for(params: Params, mask: Mask, score: ScoreFn, scope: Scope, axes: Axes | None) -> Axes:
    """What is given, what the criterion knows of its network if that matters, and names say."""
    shapes = {path: tuple(leaf.shape) for path, leaf in masks.leaf_paths(params).items()}
    words = _known_axes.words(score, shapes, masks.leaf_paths(mask), axes, need=scope.need())
    for pattern in axes or {}:
        if not _forms.matching(pattern, shapes):
            raise ValueError(
                f"axes: {pattern!r} is no path of a leaf, and as a pattern matches none. The "
                f"leaves are: {', '.join(shapes)}."
            )
    return words


def _check_start(
    mask: Mask, plan: list[Any], start_round: int, scope: Scope, axes: Axes, regrow: bool
) -> None:
    if not 0 <= start_round <= len(plan):
        raise ValueError(
            f"start_round: got {start_round}, expected the number of rounds already done, from 0 "
            f"to {len(plan)}."
        )
    if start_round == 0:
        scope.check_left(plan[0], _candidates(mask, regrow), axes=axes)
        return
    expected = scope.num_kept(plan[start_round - 1], mask, axes=axes)
    if masks.num_kept(mask) not in expected:
        at_least = f"{expected[0]} to " if len(expected) > 1 else ""
        raise ValueError(
            f"mask: keeps {masks.num_kept(mask)} weights, but after round {start_round} the "
            f"schedule keeps {at_least}{expected[-1]}. Pass the mask, start_round and schedule of "
            "one search."
        )


def _check_regrowth(scores: Scores, mask: Mask) -> None:
    """Raises if weights were pruned, and all of them score exactly zero."""
    pruned = masks.map_prunable(jnp.logical_not, mask)
    scored = masks.map_prunable(lambda p, s: jnp.any(p & (s != 0)), pruned, scores)
    if masks.num_kept(pruned) and not any(jax.tree.leaves(scored)):
        raise ValueError(
            "regrow: the criterion scores every pruned weight 0, so that none is ranked and none "
            "can come back. Use a criterion that scores pruned weights too, such as "
            "criteria.force, or regrow=False."
        )
