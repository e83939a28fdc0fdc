"""Selection of filters by one threshold for the whole network, down to a density or a budget.

What is budgeted is the number of filters, FLOPs, parameters, or whatever a function of the choice
counts or measures, such as time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from ntksap_jax.structured import costs, filter_selection
from ntksap_jax.structured.channels import Channels, filter_channels, removed_channels, whole_layers
from ntksap_jax.structured.types import FilterScores, Keep

Cost = Literal["filters", "flops", "params"] | Callable[[Keep], float]
"""What a choice of filters costs: the number of filters that stay, of those that may go (tied ones
count once), FLOPs of one example or all parameters (as `structured.cost` counts), or the result of
`cost(keep)`, such as measured seconds."""


def select_global(
    scores: FilterScores,
    channels: Channels,
    *,
    density: float | None = None,
    budget: float | None = None,
    cost: Cost = "filters",
    keep: Keep | None = None,
    min_filters: int = 1,
    multiple_of: int = 1,
) -> dict[str, np.ndarray]:
    """Prunes the lowest-scoring filters of the whole network until the rest fits a budget.

    No more are pruned than the budget demands: the number is found by bisection on the ranking,
    which calls `cost` about a dozen times. Filters that are tied, as on a residual stream, go
    together. (Measured time is noisy: the result fits the budget, but a larger network might too.)

    Args:
        scores: a number per filter, comparable between layers, the same for tied filters, as `l1`
            and `by_gate` return them; concrete. Layers without scores, and those that are not
            removable, stay whole.
        channels: the model's channels.
        density: highest cost that is allowed, as a fraction of the whole network's, in (0, 1]; a
            number of filters is rounded.
        budget: in the place of `density`, the highest cost itself.
        cost: what is counted, see `Cost`.
        keep: an earlier choice; what it pruned stays pruned. By default nothing was.
        min_filters: every layer keeps at least this many, its best (all, if fewer are left).
        multiple_of: the number that stays in a layer is rounded up to a multiple of this (at most
            to all that are left), such as 8 where the hardware prefers it. The budget still holds.

    Returns:
        Boolean arrays for all removable layers. Of equal scores earlier layers and filters stay.

    Raises:
        ValueError: not one of density and budget, one that cannot be reached, scores that do not
            fit, are not finite or differ between tied filters.
        TypeError: a cost of another kind.

    >>> import flax.linen as nn
    >>> from ntksap_jax.structured import trace
    >>> channels = trace(nn.Sequential([nn.Dense(2), nn.Dense(2), nn.Dense(1)]), (9,))
    >>> scores = {"layers_0/kernel": np.array([3.0, 1.0]), "layers_1/kernel": np.array([4.0, 2.0])}
    >>> [kept.tolist() for kept in select_global(scores, channels, density=0.5).values()]
    [[True, False], [True, False]]
    >>> kept = select_global(scores, channels, density=0.6, cost="flops")  # 48 dense, 26 left
    >>> [kept.tolist() for kept in kept.values()]
    [[True, False], [True, True]]
    """
    filter_selection.check_sizes(min_filters=min_filters, multiple_of=multiple_of)
    if (density is None) == (budget is None):
        raise ValueError("density, budget: pass exactly one of them.")
    if density is not None and not 0 < density <= 1:
        raise ValueError(f"density: got {density!r}, expected a fraction of the cost, in (0, 1].")
    numbers = _scored_channels(scores, channels)
    values = _channel_scores(scores, channels, numbers)
    removed = removed_channels(channels, keep or {})
    ranking = _ranking(values, numbers, removed)
    layers = [members[~removed[members]] for members in numbers.values()]
    protected = {c for members in layers for c in _best(members, ranking)[:min_filters].tolist()}
    queue = np.array([c for c in reversed(ranking) if c not in protected], int)

    def after(count: int) -> dict[str, np.ndarray]:
        """What stays when the first `count` channels of the queue go."""
        gone = removed.copy()
        gone[queue[:count]] = True
        _round_up(gone, layers, ranking, multiple_of)
        return {
            path: ~(gone[filter_channels(channels, path)])
            for path, layer in channels.layers.items()
            if layer.removable
        }

    cost_of = _cost_function(cost, channels, numbers)
    if density is not None:
        budget = density * cost_of({})
        budget = round(budget) if cost == "filters" else budget
    assert budget is not None
    lowest = cost_of(after(len(queue)))
    if not lowest <= budget:
        raise ValueError(
            f"{'budget' if density is None else 'density'}: a cost of {budget:.6g} cannot be "
            f"reached: with min_filters={min_filters} and multiple_of={multiple_of} the network "
            f"still costs {lowest:.6g}. Allow more, or fewer filters in a layer. "
            f"{whole_layers(channels)}."
        )
    enough, short = len(queue), -1  # fits the budget; does not (or was not tried)
    while enough - short > 1:
        middle = (enough + short) // 2
        if cost_of(after(middle)) <= budget:
            enough = middle
        else:
            short = middle
    return after(enough)


def _scored_channels(scores: FilterScores, channels: Channels) -> dict[str, np.ndarray]:
    """The channels of each removable layer with scores, in the order of calls."""
    for path, values in scores.items():
        if path not in channels.layers:
            raise ValueError(
                f"scores: {path!r} is no kernel of the layers. Expected some of: "
                f"{', '.join(channels.layers)}."
            )
        expected = (channels.layers[path].num_filters,)
        if np.shape(values) != expected:
            raise ValueError(
                f"scores: {path!r} has shape {np.shape(values)}, expected {expected}, one number "
                "per filter."
            )
    numbers = {
        path: filter_channels(channels, path)
        for path, layer in channels.layers.items()
        if path in scores and layer.removable
    }
    if not numbers:
        raise ValueError(f"scores: no layer with scores is removable: {whole_layers(channels)}.")
    return numbers


def _channel_scores(
    scores: FilterScores, channels: Channels, numbers: Mapping[str, np.ndarray]
) -> np.ndarray:
    """The score of each channel, NaN for those that have none."""
    values = np.full(channels.num_channels, np.nan)
    for path, members in numbers.items():
        own = filter_selection.finite(scores, path)
        known = ~np.isnan(values[members])
        if not np.array_equal(values[members][known], own[known]):
            raise ValueError(
                f"scores: the filters of {path!r} are tied to others, but have other scores. Give "
                "tied filters the same score, as structured.l1 and structured.by_gate do."
            )
        values[members[~known]] = own[~known]
    return values


def _ranking(
    values: np.ndarray, numbers: Mapping[str, np.ndarray], removed: np.ndarray
) -> list[int]:
    """All channels that are left and have scores, the best first, of equal ones the earlier."""
    order = list(dict.fromkeys(c for members in numbers.values() for c in members.tolist()))
    left = [channel for channel in order if not removed[channel]]
    return sorted(left, key=lambda channel: -values[channel])


def _best(members: np.ndarray, ranking: list[int]) -> np.ndarray:
    """The members of a layer, the best first."""
    place = {channel: index for index, channel in enumerate(ranking)}
    return np.array(sorted(members.tolist(), key=place.__getitem__), int)


def _round_up(
    gone: np.ndarray, layers: list[np.ndarray], ranking: list[int], multiple_of: int
) -> None:
    """Brings channels back, the best first, until every layer has a multiple of them, or all.

    What comes back to one layer may come back to others that are tied to it: until nothing does.
    """
    if multiple_of == 1:
        return
    changed = True
    while changed:
        changed = False
        for members in layers:
            count = int(np.sum(~gone[members]))
            missing = min(-count % multiple_of, len(members) - count)
            if missing:
                back = [c for c in _best(members, ranking) if gone[c]][:missing]
                gone[back] = False
                changed = True


def _cost_function(
    cost: Cost, channels: Channels, numbers: Mapping[str, np.ndarray]
) -> Callable[[Keep], float]:
    if callable(cost):
        return cost
    if cost in ("flops", "params"):
        return lambda keep: getattr(costs.cost(channels, keep), cost)
    if cost != "filters":
        raise TypeError(f"cost: got {cost!r}, expected 'filters', 'flops', 'params' or a function.")
    scored = np.unique(np.concatenate(list(numbers.values())))
    return lambda keep: int(np.sum(~removed_channels(channels, keep)[scored]))
