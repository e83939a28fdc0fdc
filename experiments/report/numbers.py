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


def spread(values: Iterable[float]) -> Spread:
    """Computes mean and standard deviation of at least one value."""
    values = list(values)
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std, len(values))


def accuracy(cell: Cell) -> Spread:
    """Returns the test accuracy after the last epoch, in percent, over the seeds of a cell."""
    return spread(100 * run.summary.last_test_accuracy for run in cell.runs)


def ranked(section: Section, density: float) -> list[tuple[Line, Cell]]:
    """Returns the criteria at a density, highest mean accuracy first."""
    return sorted(section.at(density), key=lambda pair: -accuracy(pair[1]).mean)


class Verdict(NamedTuple):
    """Which criterion is ahead at a density."""

    density: float
    best: Line  # The line with the highest mean.
    second: Line  # The next one.
    lead: float  # Percentage points between them.
    pooled: float | None  # Their pooled standard deviation; None where both have a single seed.

    @property
    def is_ahead(self) -> bool:
        """Whether the best is ahead by more than the pooled standard deviation."""
        return self.pooled is not None and self.lead > self.pooled


def verdicts(section: Section) -> list[Verdict]:
    """Compares the two best criteria at each density that has two."""
    compared = []
    for density in section.densities:
        lines = ranked(section, density)
        if len(lines) > 1:
            (best, best_cell), (second, second_cell) = lines[:2]
            a, b = accuracy(best_cell), accuracy(second_cell)
            freedom = a.seeds + b.seeds - 2
            squares = sum((cell.seeds - 1) * (cell.std or 0) ** 2 for cell in (a, b))
            pooled = math.sqrt(squares / freedom) if freedom else None
            compared.append(Verdict(density, best, second, a.mean - b.mean, pooled))
    return compared
