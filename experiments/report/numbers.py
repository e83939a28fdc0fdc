"""Statistics over seeds: means, standard deviations, and whether a lead is more than chance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from experiments.report.setups import Cell, Line, Section


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1); a single value has no deviation."""

    mean: float
    std: float | None
    seeds: int


def spread(values: Iterable[float | None]) -> Spread:
    """Computes mean and standard deviation, leaving out missing values."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return Spread(math.nan, None, 0)
    std = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), std, len(known))


def accuracy(cell: Cell) -> Spread:
    """Returns the test accuracy after the last epoch, in percent, over the seeds of a cell."""
    return spread(100 * run.summary.last_test_accuracy for run in cell.runs)


def pooled_std(a: Spread, b: Spread) -> float | None:
    """Pools the deviations of two cells; None if both have a single seed."""
    freedom = a.seeds + b.seeds - 2
    if freedom < 1:
        return None
    return math.sqrt(sum((cell.seeds - 1) * (cell.std or 0) ** 2 for cell in (a, b)) / freedom)


class Verdict(NamedTuple):
    """Which criterion is ahead at a density.

    Attributes:
        density: where.
        best: the line with the highest mean.
        second: the next one; None if there is only one line.
        lead: percentage points between them.
        pooled: their pooled standard deviation; None where both have a single seed.
    """

    density: float
    best: Line
    second: Line | None
    lead: float
    pooled: float | None

    @property
    def is_ahead(self) -> bool:
        """Whether the best is ahead by more than the pooled standard deviation."""
        return self.second is not None and self.pooled is not None and self.lead > self.pooled


def ranked(section: Section, density: float) -> list[tuple[Line, Cell]]:
    """Returns the criteria at a density, highest mean accuracy first."""
    return sorted(section.at(density), key=lambda pair: -accuracy(pair[1]).mean)


def verdict(section: Section, density: float) -> Verdict | None:
    """Compares the two best criteria at a density; None if nothing was pruned to it."""
    lines = ranked(section, density)
    if not lines:
        return None
    if len(lines) == 1:
        return Verdict(density, lines[0][0], None, math.nan, None)
    (best, best_cell), (second, second_cell) = lines[:2]
    first, next_one = accuracy(best_cell), accuracy(second_cell)
    return Verdict(density, best, second, first.mean - next_one.mean, pooled_std(first, next_one))
