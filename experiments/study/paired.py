"""Differences of accuracy between arms of a study, seed by seed, with bootstrap intervals.

An arm is a criterion with its options. Arms of the same seed have the same weights, order and
augmentation of the images, so that most of what seeds differ by cancels in their difference. Its
interval is the percentile bootstrap's (Efron, "Bootstrap methods: another look at the jackknife",
1979): the 2.5 % and 97.5 % quantiles of the mean of as many differences, drawn with replacement.
With few seeds it is too short: of three it never leaves the smallest and the largest difference,
which enclose the true mean with probability 3/4 if differences are symmetric around it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.cifar.config import Config
from experiments.report.runs import Summary
from experiments.report.setups import VARIANTS, Line, Section
from experiments.shell.errors import UserError

RESAMPLES = 10_000


class Compared(NamedTuple):
    """An arm beside the baseline, at one density or over all; accuracies in percent."""

    arm: str
    density: float | None  # None: the mean over all densities.
    seeds: int  # Those that both have.
    accuracy: float  # Mean over these seeds.
    difference: float  # Mean accuracy minus that of the baseline.
    low: float | None  # The interval of the difference; None for a single seed.
    high: float | None
    search_seconds: float  # Mean time of the search.


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """Returns the 95 % bootstrap interval of the mean; of a single value there is none."""
    values = np.asarray(differences, np.float64)
    if len(values) < 2:
        return None
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def compare(section: Section, baseline: str) -> list[Compared]:
    """Compares every arm with the baseline: at each density, then over all of them.

    Nothing is compared as long as the baseline has no complete run.

    Raises:
        UserError: two arms have the same name.
    """
    arms: dict[str, Line] = {}
    for line in section.pruned:
        if (name := name_of(line.cells[0].runs[0].config)) in arms:
            raise UserError(
                f"two arms are called {name!r}, and differ in their options. Give one of them a "
                'label, such as label = ["b"]'
            )
        arms[name] = line
    if baseline not in arms:
        return []
    spans = [[density] for density in section.densities]
    spans += [section.densities] if len(spans) > 1 else []
    tables = {name: _by_density_and_seed(line) for name, line in arms.items()}
    compared = [
        _compare(name, tables[name], tables[baseline], span) for span in spans for name in tables
    ]
    return [each for each in compared if each is not None]


def name_of(config: Config) -> str:
    """Names the arm of a run: criterion, sanity checks and label."""
    checks = [words for option, words in VARIANTS.items() if getattr(config.search, option)]
    return " ".join(filter(None, [config.search.criterion, *checks, config.label]))


_Summaries = Mapping[float, Mapping[int, Summary]]


def _by_density_and_seed(line: Line) -> _Summaries:
    return {
        cell.density: {run.config.seed: run.summary for run in cell.runs} for cell in line.cells
    }


def _compare(
    name: str, ours: _Summaries, theirs: _Summaries, densities: Sequence[float]
) -> Compared | None:
    """Compares means over the densities, seed by seed; None if no seed has all runs of both."""
    tables = [each.get(density, {}) for each in (ours, theirs) for density in densities]
    seeds = sorted(set.intersection(*map(set, tables)))
    if not seeds:
        return None
    mine, base = (
        [
            statistics.fmean(100 * each[density][seed].last_test_accuracy for density in densities)
            for seed in seeds
        ]
        for each in (ours, theirs)
    )
    differences = [a - b for a, b in zip(mine, base, strict=True)]
    low, high = interval(differences) or (None, None)
    return Compared(
        arm=name,
        density=densities[0] if len(densities) == 1 else None,
        seeds=len(seeds),
        accuracy=statistics.fmean(mine),
        difference=statistics.fmean(differences),
        low=low,
        high=high,
        search_seconds=statistics.fmean(
            ours[density][seed].search_seconds for density in densities for seed in seeds
        ),
    )
