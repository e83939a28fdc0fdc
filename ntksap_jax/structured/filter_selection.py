"""Selection of filters by a pruning ratio for every layer, as in TPP."""

from __future__ import annotations

import fnmatch
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ntksap_jax.structured.channels import Channels
from ntksap_jax.structured.types import FilterScores


def ratios(
    channels: Channels,
    patterns: Mapping[str | int | range, float],
    *,
    skip: Iterable[str | int | range] = (),
) -> dict[str, float]:
    """Gives every layer its pruning ratio by shell patterns of its path; 0 where none matches.

    `"block_*/conv1"` matches layers by path, with or without the final `/kernel`; `*` also matches
    a slash, and `[1-3]` is one character. A number or a `range` matches layers by their index in
    the order of calls. Later patterns override earlier ones, as in TPP's `stage_pr`.

    Args:
        channels: the model's channels.
        patterns: fraction of filters to prune, by pattern.
        skip: patterns of layers that get ratio 0 whatever else matches.

    Returns:
        A ratio in [0, 1) for each layer, by path of the kernel.

    Raises:
        ValueError: a pattern that matches nothing, a ratio that would empty a layer, a ratio for a
            layer whose outputs must stay.
        TypeError: patterns of another kind.

    >>> import flax.linen as nn
    >>> from ntksap_jax import structured
    >>> channels = structured.trace(nn.Sequential([nn.Dense(8), nn.Dense(8), nn.Dense(3)]), (4,))
    >>> list(ratios(channels, {"layers_[01]": 0.5, "layers_1": 0.7}).values())
    [0.5, 0.7, 0.0]
    >>> list(ratios(channels, {range(0, 2): 0.8}, skip=["layers_0/kernel"]).values())
    [0.0, 0.8, 0.0]
    """
    if isinstance(skip, str):
        raise TypeError(f"skip: got {skip!r}, expected a list of patterns.")
    layers = channels.layers
    chosen = dict.fromkeys(layers, 0.0)
    for pattern, ratio in patterns.items():
        check_ratio("patterns", repr(pattern), ratio)
        chosen.update(dict.fromkeys(_matching(channels, pattern, "patterns"), float(ratio)))
    for pattern in skip:
        chosen.update(dict.fromkeys(_matching(channels, pattern, "skip"), 0.0))
    for path, ratio in chosen.items():
        if ratio > 0 and not layers[path].removable:
            raise ValueError(
                f"patterns: layer {path!r} gets ratio {ratio}, but its filters cannot be removed: "
                f"{channels.reasons[path]}. Narrow the pattern, or name the layer in skip."
            )
    return chosen


def check_ratio(argument: str, name: str, ratio: Any) -> None:
    """Raises a ValueError unless the ratio is a number in [0, 1)."""
    if not (isinstance(ratio, numbers.Real) and 0 <= float(ratio) < 1):
        raise ValueError(
            f"{argument}: ratio {ratio!r} for {name}, expected the fraction of filters to prune, "
            "in [0, 1): all of them would cut the network in two."
        )


def _matching(channels: Channels, pattern: str | int | range, argument: str) -> list[str]:
    layers = channels.layers
    if isinstance(pattern, str):
        hits = [
            path
            for path in layers
            if fnmatch.fnmatchcase(path, pattern)
            or fnmatch.fnmatchcase(path.rpartition("/")[0], pattern)
        ]
    elif isinstance(pattern, int | range):
        indices = [pattern] if isinstance(pattern, int) else pattern
        hits = [path for path, layer in layers.items() if layer.index in indices]
    else:
        raise TypeError(
            f"{argument}: got {pattern!r}, expected a path pattern, or an index or range of them."
        )
    if not hits:
        raise ValueError(
            f"{argument}: {pattern!r} matches no layer. The layers are: {', '.join(layers)}."
        )
    return hits


def num_pruned(num_filters: int, ratio: float) -> int:
    """Returns how many filters of a layer a ratio prunes: min(⌈ratio·N⌉, ⌊0.995 N⌋).

    At least one filter always stays. In Python's floating point, as in TPP's released code: ⌈0.55 ·
    100⌉ is 56.

    >>> num_pruned(16, 0.9), num_pruned(16, 0.99), num_pruned(1, 0.9), num_pruned(100, 0.55)
    (15, 15, 0, 56)
    """
    return min(math.ceil(ratio * num_filters), int(0.995 * num_filters))


def select(
    scores: FilterScores,
    ratios: Mapping[str, float],
    *,
    min_filters: int = 1,
    multiple_of: int = 1,
) -> dict[str, np.ndarray]:
    """Prunes the lowest-scoring filters of each layer, by its own ratio (TPP).

    Args:
        scores: a number per filter, as of `l1` or `by_gate`; concrete.
        ratios: fraction of filters to prune, in [0, 1), by path of the kernel; see `ratios`.
        min_filters: every layer keeps at least this many (all, if it has fewer).
        multiple_of: the number that stays is rounded up to a multiple of this (at most to all of
            them), such as 8 where the hardware prefers it.

    Returns:
        Boolean arrays for the layers with a ratio above 0; the others stay whole. Of filters with
        equal scores the earlier one stays.

    Raises:
        ValueError: a ratio for a layer without scores, or out of range; scores that are not finite.

    >>> scores = {"a": np.array([3.0, 1.0, 2.0, 4.0]), "b": np.ones(2)}
    >>> {path: kept.tolist() for path, kept in select(scores, {"a": 0.5, "b": 0.0}).items()}
    {'a': [True, False, False, True]}
    """
    check_sizes(min_filters=min_filters, multiple_of=multiple_of)
    keep = {}
    for path, ratio in ratios.items():
        check_ratio("ratios", f"layer {path!r}", ratio)
        if path not in scores:
            raise ValueError(f"ratios: layer {path!r} has no scores. Score it, or leave it out.")
        if ratio > 0:
            ranked = np.argsort(-finite(scores, path), kind="stable")
            total = len(ranked)
            stay = rounded_up(total - num_pruned(total, ratio), total, min_filters, multiple_of)
            keep[path] = np.zeros(total, bool)
            keep[path][ranked[:stay]] = True
    return keep


def rounded_up(count: int, total: int, min_filters: int, multiple_of: int) -> int:
    """Returns how many of `total` filters stay, at least `count`."""
    count = max(count, min_filters)
    return min(total, -(-count // multiple_of) * multiple_of)


def finite(scores: FilterScores, path: str) -> np.ndarray:
    """Returns the scores of a layer in float64, or raises a ValueError if they rank nothing."""
    values = np.asarray(scores[path], np.float64)
    if not np.all(np.isfinite(values)):
        raise ValueError(f"scores: those of {path!r} are not all finite, so they rank no filters.")
    return values


def check_sizes(**sizes: Any) -> None:
    """Raises a ValueError unless all sizes are integers of at least 1."""
    for name, size in sizes.items():
        if not (isinstance(size, numbers.Integral) and int(size) >= 1):
            raise ValueError(f"{name}: got {size!r}, expected an integer of at least 1.")
