"""Pruning filters before training: any criterion of the library, round by round, gate by gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from ntksap_jax import schedules
from ntksap_jax._draws import typed_key
from ntksap_jax.structured import filters, global_selection
from ntksap_jax.structured.channels import Channels
from ntksap_jax.structured.global_selection import Cost
from ntksap_jax.types import Batch, Key, Params, ScoreFn


def prune(
    key: Key,
    params: Params,
    score: ScoreFn,
    channels: Channels,
    *,
    schedule: Sequence[float] | np.ndarray,
    cost: Cost = "filters",
    batch: Batch = None,
    absolute: bool = True,
    min_filters: int = 1,
    multiple_of: int = 1,
    on_round: Callable[[int, dict[str, np.ndarray]], None] | None = None,
) -> dict[str, np.ndarray]:
    """Prunes whole filters, scoring anew in every round what is left.

    Filter-level NTK-SAP is `score=criteria.ntk_sap(network, signed=True)`, and likewise SNIP. The
    scores of `criteria.magnitude()`, `synflow(network)` and `px(network)` are positive as they are;
    the sign of `grasp(network)` ranks: pass `absolute=False`.

    Args:
        key: PRNG key; every round has its own, the same whatever the schedule.
        params: the weights, as for the criterion.
        score: the criterion. Derivatives must keep their sign: `signed=True` where it has that.
            (Random scores are summed too, and so rank filters by how many weights they have.)
        channels: the model's channels; layers that are not removable stay whole.
        schedule: fraction of the whole network's cost that is left after each round, never rising,
            such as `schedules.exponential(0.3, rounds=20)`.
        cost: what the schedule is of, as for `global_selection.select_global`: the number of
            filters, FLOPs, parameters or a function.
        batch: data for the criterion, if it needs any.
        absolute: score a filter by the absolute value of the sum over its weights (`by_gate`), as
            fits derivatives, or by the sum.
        min_filters: see `global_selection.select_global`, like `multiple_of`.
        multiple_of: rounding of the number of filters, in the last round.
        on_round: called as `on_round(round, keep)` after each round, from 1.

    Returns:
        Which filters stay, by path of the kernel, for the removable layers.

    Raises:
        ValueError, TypeError: as the schedule, the criterion and the selection do.

    >>> import flax.linen as nn, jax.numpy as jnp
    >>> from ntksap_jax import criteria
    >>> from ntksap_jax.structured.tracing import trace
    >>> model = nn.Sequential([nn.Dense(3, use_bias=False), nn.Dense(1, use_bias=False)])
    >>> params = {"layers_0": {"kernel": jnp.array([[3.0, 1.0, 2.0]])},
    ...           "layers_1": {"kernel": jnp.ones((3, 1))}}
    >>> channels = trace(model, (1,))
    >>> prune(jax.random.key(0), params, criteria.magnitude(), channels, schedule=[0.7, 0.4])
    {'layers_0/kernel': array([ True, False, False])}
    """
    densities = schedules.check(np.asarray(schedule))
    keep: dict[str, np.ndarray] = {}
    for index, density in enumerate(densities):
        mask = filters.to_mask(params, channels.layers, keep)
        scores, _ = score(jax.random.fold_in(typed_key(key), index), params, mask, batch)
        if absolute:
            gates = filters.by_gate(scores, channels)
        else:
            gates = filters.tie(filters.sums(scores, channels.layers), channels)
        keep = global_selection.select_global(
            gates,
            channels,
            density=float(density),
            cost=cost,
            keep=keep,
            min_filters=min_filters,
            multiple_of=multiple_of if index == len(densities) - 1 else 1,
        )
        if on_round is not None:
            on_round(index + 1, dict(keep))
    return keep
