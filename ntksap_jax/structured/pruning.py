"""Pruning filters round by round, with any criterion, down to a budget."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ntksap_jax import _scores, masks, schedules
from ntksap_jax._draws import typed_key
from ntksap_jax.structured import _nnx_model, filters, global_selection, shrinking, tracing
from ntksap_jax.structured.channels import Channels
from ntksap_jax.structured.global_selection import Cost
from ntksap_jax.structured.types import FilterScores, Keep
from ntksap_jax.types import Batch, Key, Params, ScoreFn

FilterScoreFn = Callable[[Params, Channels], FilterScores]
"""A score of filters: `score(params, channels) -> {kernel path: array (num_filters,)}`."""

ROUNDS = 20
"""Of a criterion that is given no schedule, as in `ntksap_jax.prune`."""


def prune_model(
    key: Key,
    model: Any,
    variables: Any,
    score: ScoreFn | FilterScoreFn,
    flops: float = 0.25,
    *,
    input_shape: Any,
    dtype: Any = jnp.float32,
    batch: Batch = None,
    min_filters: int = 1,
    multiple_of: int = 1,
    **apply_kwargs: Any,
) -> tuple[Any, Any]:
    """Removes filters of a model until a fraction of its FLOPs is left.

    This is the common case in one call: `trace` the model, `prune` its filters, `zero_out` those
    that go, and `shrink`. Nothing is trained; fine-tune or train what it returns.

    Args:
        key: PRNG key of the criterion.
        model: the (unbound) linen module, the nnx model, or a function of params and inputs.
        variables: its `{"params": ..., "batch_stats": ...}`, trained or fresh, `{"params": ...}` of
            a function; None of an nnx model: those that it holds.
        score: a criterion, whose derivatives must keep their sign, such as
            `criteria.ntk_sap(network, signed=True)`, in 20 rounds; or a score of filters such as
            `structured.l1`, in one, for it depends on nothing that earlier rounds change.
        flops: highest fraction of the FLOPs of one example that is left, in (0, 1].
        input_shape: shape of one example, without the batch axis; or shapes of several inputs, as
            for `ntksap_jax.linen`.
        dtype: type of the inputs that come as a shape alone.
        batch: data for the criterion, if it needs any.
        min_filters: every layer keeps at least this many (all, if it has fewer).
        multiple_of: the number that stays in a layer is rounded up to a multiple of this.
        **apply_kwargs: arguments that put the module in evaluation mode, such as `train=False`.

    Returns:
        The smaller module, and its variables (which an nnx model holds too). It takes the arguments
        of `model`, and can be trained, saved and pruned again. `model` stays as it is.

    Raises:
        TypeError, ValueError: a model that cannot be traced or has no filter that can go, variables
            of another model, a fraction that cannot be reached; see `trace`, `prune` and `shrink`.

    >>> import flax.linen as nn
    >>> from ntksap_jax import structured
    >>> model = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(10)])
    >>> variables, x = model.init(jax.random.key(0), jnp.ones((1, 20))), jnp.ones((5, 20))
    >>> small, fewer = prune_model(
    ...     jax.random.key(1), model, variables, structured.l1, flops=0.25, input_shape=(20,))
    >>> dense, left = (structured.cost(structured.trace(m, (20,))).flops for m in (model, small))
    >>> left <= 0.25 * dense, small.apply(fewer, x).shape
    (True, (5, 10))
    """
    if not 0 < flops <= 1:
        raise ValueError(f"flops: got {flops}, expected the fraction that is left, in (0, 1].")
    if variables is None and isinstance(model, nnx.Module):
        variables = _nnx_model.variables_of(model)
    if tracing.is_function(model):
        apply_kwargs["params"] = variables["params"]
    channels = tracing.trace(model, input_shape, dtype=dtype, **apply_kwargs)
    variables = shrinking.check_variables(variables, channels)
    keep = prune(
        key,
        variables["params"],
        score,
        channels,
        flops,
        cost="flops",
        batch=batch,
        min_filters=min_filters,
        multiple_of=multiple_of,
    )
    zeroed = shrinking.zero_out(variables, channels, keep)
    return shrinking.shrink(model, zeroed, channels, keep)


def prune(
    key: Key,
    params: Params,
    score: ScoreFn | FilterScoreFn,
    channels: Channels,
    density: float | None = None,
    *,
    schedule: Sequence[float] | np.ndarray | None = None,
    cost: Cost = "filters",
    batch: Batch = None,
    absolute: bool = True,
    min_filters: int = 1,
    multiple_of: int = 1,
    on_round: Callable[[int, dict[str, np.ndarray]], None] | None = None,
) -> dict[str, np.ndarray]:
    """Prunes whole filters, scoring what is left anew in every round.

    Filter-level NTK-SAP is `score=criteria.ntk_sap(network, signed=True)`, and likewise SNIP. The
    scores of `criteria.magnitude()`, `synflow(network)` and `px(network)` are positive as they are;
    the sign of `grasp(network)` ranks: pass `absolute=False`.

    Args:
        key: PRNG key; every round has its own, the same whatever the schedule.
        params: the weights, as for the criterion.
        score: the criterion. Derivatives must keep their sign: `signed=True` where it has that.
            (Random scores are summed too, and so rank filters by how many weights they have.) Or a
            score of filters, a function of params and channels such as `l1`.
        channels: the model's channels; layers that are not removable stay whole.
        density: fraction of the whole network's cost that is left in the end, reached in 20
            exponential rounds, or in one for a score of filters.
        schedule: in the place of `density`, the fraction that is left after each round, never
            rising, such as `schedules.exponential(0.3, rounds=100)`.
        cost: what these are fractions of, as for `select_global`: the number of filters, FLOPs,
            parameters or a function.
        batch: data for the criterion, if it needs any.
        absolute: see `by_gate`.
        min_filters: see `select_global`.
        multiple_of: rounding of the number of filters, see `select_global`.
        on_round: called as `on_round(round, keep)` after each round, from 1.

    Returns:
        Which filters stay, by path of the kernel, for the removable layers.

    Raises:
        ValueError, TypeError: not one of density and schedule, scores that are not finite or all
            zero in a layer, or as the schedule, the criterion and the selection do.

    >>> import flax.linen as nn, jax.numpy as jnp
    >>> from ntksap_jax import criteria, structured
    >>> model = nn.Sequential([nn.Dense(3, use_bias=False), nn.Dense(1, use_bias=False)])
    >>> params = {"layers_0": {"kernel": jnp.array([[3.0, 1.0, 2.0]])},
    ...           "layers_1": {"kernel": jnp.ones((3, 1))}}
    >>> channels = structured.trace(model, (1,))
    >>> prune(jax.random.key(0), params, criteria.magnitude(), channels, schedule=[0.7, 0.4])
    {'layers_0/kernel': array([ True, False, False])}
    """
    if (density is None) == (schedule is None):
        raise ValueError("density, schedule: pass exactly one of them.")
    of_filters = _is_of_filters(score)
    if density is not None:
        schedule = schedules.exponential(density, rounds=1 if of_filters else ROUNDS)
    densities = schedules.check(np.asarray(schedule))

    def scores_of(key: Key, keep: Keep) -> FilterScores:
        if of_filters:
            of_layers: Any = score(params, channels)  # type: ignore[call-arg, arg-type]
            of_layers = {path: np.asarray(values) for path, values in of_layers.items()}
            _check(of_layers, {p: np.ones(s.shape, bool) for p, s in of_layers.items()}, channels)
            return of_layers
        mask = filters.to_mask(params, channels, keep)
        scores, _ = score(key, params, mask, batch)  # type: ignore[call-arg, arg-type]
        found, given = masks.leaf_paths(scores), masks.leaf_paths(mask)
        _check(found, given, channels, score=score, params=params)
        return filters.by_gate(scores, channels, absolute=absolute)

    keep: dict[str, np.ndarray] = {}
    for index, left in enumerate(densities):
        keep = global_selection.select_global(
            scores_of(jax.random.fold_in(typed_key(key), index), keep),
            channels,
            density=float(left),
            cost=cost,
            keep=keep,
            min_filters=min_filters,
            multiple_of=multiple_of,
        )
        if on_round is not None:
            on_round(index + 1, dict(keep))
    return keep


def _check(scores: dict[str, Any], mask: dict[str, Any], channels: Channels, **blame: Any) -> None:
    """Checks scores as `ntksap_jax.prune` does, of the layers that may lose filters."""
    paths = [path for path, layer in channels.layers.items() if layer.removable and path in scores]
    _scores.check(
        {path: scores[path] for path in paths},
        {path: mask[path] for path in paths},
        advice="Score it with other weights or by another criterion, or prune less.",
        **blame,
    )


def _is_of_filters(score: Any) -> bool:
    """Whether a score is one of filters: it takes two arguments, where a criterion takes four."""
    try:
        inspect.signature(score).bind(None, None, None, None)
    except TypeError:
        return True
    return False
