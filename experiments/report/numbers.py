"""Numbers over seeds: means, standard deviations, and whether a difference is one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from experiments.report.setups import Cell, Line, Section


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1); a single value has none."""

    mean: float
    std: float | None
    seeds: int


def spread(values: Iterable[float]) -> Spread:
    """Computes mean and standard deviation; a value that is not there is left out."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return Spread(math.nan, None, 0)
    std = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), std, len(known))


def accuracy(cell: Cell) -> Spread:
    """Test accuracy after the last epoch, in percent, over the seeds of a cell."""
    return spread(100 * run.summary["last_test_accuracy"] for run in cell.runs)


def actual_density(cell: Cell) -> float:
    """The density that was reached, which N:M patterns and minima may move."""
    return spread(run.summary["density"] for run in cell.runs).mean


def pooled_std(a: Spread, b: Spread) -> float | None:
    """Pools the deviations of two cells; none if both have a single seed."""
    freedom = a.seeds + b.seeds - 2
    if freedom < 1:
        return None
    total = sum((each.seeds - 1) * (each.std or 0) ** 2 for each in (a, b))
    return math.sqrt(total / freedom)


class Verdict(NamedTuple):
    """Who is ahead at a density.

    Attributes:
        best: the line with the highest mean.
        second: the next one; none if there is only one line.
        lead: points between them.
        pooled: their pooled standard deviation; none where both have a single seed.
    """

    best: Line
    second: Line | None
    lead: float
    pooled: float | None

    @property
    def is_ahead(self) -> bool:
        """Whether the best is ahead by more than the pooled standard deviation."""
        return self.second is not None and self.pooled is not None and self.lead > self.pooled


def verdict(section: Section, density: float) -> Verdict | None:
    """Compares the two best criteria at a density; none if nothing was pruned to it."""
    ranked = sorted(
        (
            (accuracy(cell), line)
            for line in section.pruned
            if (cell := line.at(density)) is not None
        ),
        key=lambda pair: -pair[0].mean,
    )
    if not ranked:
        return None
    (first, best), *rest = ranked
    if not rest:
        return Verdict(best, None, math.nan, None)
    second = rest[0]
    return Verdict(best, second[1], first.mean - second[0].mean, pooled_std(first, second[0]))
