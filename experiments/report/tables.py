"""Tables of a section: accuracies, what the masks keep, and rows for CSV files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from experiments.report import numbers
from experiments.report.comparison import Comparison
from experiments.report.numbers import Spread
from experiments.report.published import Point
from experiments.report.runs import Run, Summary
from experiments.report.setups import Cell, Line, Section

NOTHING = "–"


class Entry(NamedTuple):
    """A cell of a table.

    Attributes:
        text: what it says.
        spread: deviation and number of seeds, which pages show smaller; may be empty.
        is_best: whether it is to be bold.
    """

    text: str
    spread: str = ""
    is_best: bool = False

    def __str__(self) -> str:
        """Returns the cell in Markdown."""
        plain = f"{self.text} {self.spread}".strip()
        return f"**{plain}**" if self.is_best else plain


class Table(NamedTuple):
    """A table; its first column holds text, the others hold numbers."""

    header: tuple[str, ...]
    rows: list[tuple[Entry, ...]]


# -- For readers ---------------------------------------------------------------------------------


def accuracies(section: Section, comparisons: Sequence[Comparison] = ()) -> Table:
    """Criteria by densities; the best is bold where it leads by more than the pooled deviation.

    Rows of what was published in the same set-up follow, at our densities.
    """
    densities = section.densities
    columns = [1.0, *densities] if section.dense and 1.0 not in densities else densities
    verdicts = [numbers.verdict(section, density) for density in densities]
    ahead = {(v.density, v.best.name) for v in verdicts if v is not None and v.is_ahead}

    def entry(line: Line, density: float) -> Entry:
        cell = line.at(density)
        if cell is None:
            return Entry(NOTHING)
        return spread_entry(numbers.accuracy(cell), is_best=(density, line.name) in ahead)

    rows = [
        (Entry(line.name), *(entry(line, density) for density in columns)) for line in section.lines
    ]
    rows += [
        (Entry(f"{name}, published"), *(_published(points, density) for density in columns))
        for comparison in comparisons
        if comparison.is_same
        for name, points in comparison.curves.items()
    ]
    return Table(("criterion", *map(density_text, columns)), rows)


def _published(points: Sequence[Point], density: float) -> Entry:
    for point in points:
        if math.isclose(point.density, density, rel_tol=0.005):
            about = "≈ " if point.digitised else ""
            deviation = "" if point.std is None else f"± {point.std:.2f}"
            return Entry(f"{about}{point.accuracy:.2f}", deviation)
    return Entry(NOTHING)


def kept(section: Section) -> Table:
    """What the masks keep and how long it took: a row for each cell, means over seeds."""
    columns: dict[str, tuple[str, str]] = {
        "density": ("density", "{:.4g}"),
        "effective density": ("effective_density", "{:.4g}"),
        "FLOPs kept": ("flops_kept", "{:.1%}"),
        "live channels": ("live_channels", "{:.0%}"),
        "dead layers": ("dead_layers", "{:.3g}"),
        "search": ("search_seconds", "{:.1f} s"),
        "training": ("training_seconds", "{:.0f} s"),
    }

    def row(line: Line, cell: Cell) -> tuple[Entry, ...]:
        means = cell_means(cell)
        values = (
            NOTHING if means[name] is None else form.format(means[name])
            for name, form in columns.values()
        )
        return (Entry(line.name), *map(Entry, values))

    rows = [row(line, cell) for line in section.lines for cell in line.cells]
    return Table(("criterion", *columns), rows)


def spread_entry(value: Spread, *, digits: int = 2, is_best: bool = False) -> Entry:
    """Returns `72.41 ± 0.22 (3)`: mean, standard deviation, seeds; no ± for a single seed."""
    if not value.seeds:
        return Entry(NOTHING)
    deviation = "" if value.std is None else f"± {value.std:.{digits}f} "
    return Entry(f"{value.mean:.{digits}f}", f"{deviation}({value.seeds})", is_best)


def density_text(density: float) -> str:
    """Returns a density with three significant digits."""
    return f"{density:.3g}"


# -- For programs --------------------------------------------------------------------------------

QUANTITIES: dict[str, Callable[[Summary], float | None]] = {
    "density": lambda summary: summary.density,
    "effective_density": lambda summary: summary.effective_density,
    "flops_kept": lambda summary: summary.flops_kept,
    "live_channels": lambda summary: summary.mean_live_channels,
    "dead_layers": lambda summary: (
        None if summary.dead_layers is None else len(summary.dead_layers)
    ),
    "search_seconds": lambda summary: summary.search_seconds,
    "training_seconds": lambda summary: summary.training_seconds,
}
"""What is averaged over the seeds of a cell; None where a run did not record it."""


def cell_means(cell: Cell) -> dict[str, float | None]:
    """Returns means over the seeds of a cell; None where no run recorded the quantity."""
    spreads = {
        name: numbers.spread(quantity(run.summary) for run in cell.runs)
        for name, quantity in QUANTITIES.items()
    }
    return {name: value.mean if value.seeds else None for name, value in spreads.items()}


def cell_rows(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Returns a row for each cell, numbers unrounded."""
    return [_cell_row(*place) for place in _cells(sections)]


def _cell_row(section: Section, line: Line, cell: Cell) -> dict[str, Any]:
    accuracy, verdict = numbers.accuracy(cell), numbers.verdict(section, cell.density)
    means = cell_means(cell)
    return {
        **_where(section, line, cell),
        "seeds": accuracy.seeds,
        "mean_accuracy": accuracy.mean,
        "std_accuracy": accuracy.std,
        "ahead": verdict is not None and verdict.best is line and verdict.is_ahead,
        "reached_density": means.pop("density"),
        **means,
    }


def run_rows(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Returns a row for each run, accuracies in percent."""
    return [
        {**_where(section, line, cell), **_run_row(run)}
        for section, line, cell in _cells(sections)
        for run in cell.runs
    ]


def _run_row(run: Run) -> dict[str, Any]:
    summary = run.summary
    measured = {name: quantity(summary) for name, quantity in QUANTITIES.items()}
    return {
        "seed": run.config.seed,
        "last_test_accuracy": 100 * summary.last_test_accuracy,
        "best_test_accuracy": 100 * summary.best_test_accuracy,
        "best_epoch": summary.best_epoch,
        "reached_density": measured.pop("density"),
        **measured,
        "dead_layers": " ".join(summary.dead_layers or ()),
        "mask_sha256": summary.mask_sha256,
        "folder": str(run.folder),
    }


def _cells(sections: Sequence[Section]) -> Iterable[tuple[Section, Line, Cell]]:
    return (
        (section, line, cell)
        for section in sections
        for line in section.lines
        for cell in line.cells
    )


def _where(section: Section, line: Line, cell: Cell) -> dict[str, Any]:
    facts = section.facts
    return {
        "setup": section.number,
        "dataset": facts["data set"],
        "image_size": facts["image size"],
        "model": facts["network"],
        "epochs": facts["epochs"],
        "criterion": line.criterion,
        "line": line.name,
        "density": cell.density,
    }
