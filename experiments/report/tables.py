"""Tables of a section: accuracies, what the masks keep, and rows for CSV files."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.report import numbers
from experiments.report.numbers import Spread
from experiments.report.published import Point
from experiments.report.runs import Summary
from experiments.report.setups import Cell, Line, Section, density_text

NOTHING = "–"


class Entry(NamedTuple):
    """A cell of a table."""

    text: str  # What it says.
    spread: str = ""  # Deviation and number of seeds, which pages show smaller; may be empty.
    is_best: bool = False  # Whether it is to be bold.

    def __str__(self) -> str:
        """Returns the cell in Markdown."""
        plain = f"{self.text} {self.spread}".strip()
        return f"**{plain}**" if self.is_best else plain


class Table(NamedTuple):
    """A table; its first column holds text, the others hold numbers."""

    header: tuple[str, ...]
    rows: list[tuple[Entry, ...]]


# -- For readers ---------------------------------------------------------------------------------


def accuracies(section: Section, published: Mapping[str, Sequence[Point]]) -> Table:
    """Criteria by densities; the best is bold where it leads by more than the pooled deviation.

    Rows of what was published in the same set-up follow, at our densities.
    """
    columns = sorted({cell.density for _, cell in section.cells}, reverse=True)
    ahead = _ahead(section)
    rows = []
    for line in section.lines:
        entries = {
            cell.density: spread_entry(
                numbers.accuracy(cell), is_best=(cell.density, line.name) in ahead
            )
            for cell in line.cells
        }
        ours = (entries.get(density, Entry(NOTHING)) for density in columns)
        rows.append((Entry(line.name), *ours))
    for name, points in published.items():
        theirs = (_published(points, density) for density in columns)
        rows.append((Entry(f"{name}, published"), *theirs))
    return Table(("criterion", *map(density_text, columns)), rows)


def _ahead(section: Section) -> set[tuple[float, str]]:
    """Returns the densities and names of the cells that are ahead of all others."""
    return {(it.density, it.best.name) for it in numbers.verdicts(section) if it.is_ahead}


def _published(points: Sequence[Point], density: float) -> Entry:
    for point in points:
        if math.isclose(point.density, density, rel_tol=0.005):
            about = "≈ " if point.digitised else ""
            deviation = "" if point.std is None else f"± {point.std:.2f}"
            return Entry(f"{about}{point.accuracy:.2f}", deviation)
    return Entry(NOTHING)


KEPT = {
    "density": ("reached_density", "{:.4g}"),
    "effective density": ("effective_density", "{:.4g}"),
    "FLOPs kept": ("flops_kept", "{:.1%}"),
    "live channels": ("live_channels", "{:.0%}"),
    "dead layers": ("dead_layers", "{:.3g}"),
    "search": ("search_seconds", "{:.1f} s"),
    "training": ("training_seconds", "{:.0f} s"),
}
"""Columns of the table of what the masks keep: quantity and format."""


def kept(section: Section) -> Table:
    """What the masks keep and how long it took: a row for each cell, means over seeds."""
    rows = []
    for line, cell in section.cells:
        means = _cell_means(cell)
        texts = (
            NOTHING if means[name] is None else form.format(means[name])
            for name, form in KEPT.values()
        )
        rows.append((Entry(line.name), *map(Entry, texts)))
    return Table(("criterion", *KEPT), rows)


def spread_entry(value: Spread, *, digits: int = 2, is_best: bool = False) -> Entry:
    """Returns `72.41 ± 0.22 (3)`: mean, standard deviation, seeds; no ± for a single seed."""
    deviation = "" if value.std is None else f"± {value.std:.{digits}f} "
    return Entry(f"{value.mean:.{digits}f}", f"{deviation}({value.seeds})", is_best)


# -- For programs --------------------------------------------------------------------------------


def _quantities(summary: Summary) -> dict[str, float | None]:
    """Returns what is averaged over the seeds of a cell; None where a run did not record it."""
    live, dead = summary.live_channels.values(), summary.dead_layers
    return {
        "reached_density": summary.density,
        "effective_density": summary.effective_density,
        "flops_kept": summary.kept_flops / summary.dense_flops,
        "live_channels": sum(live) / len(live) if live else None,
        "dead_layers": None if dead is None else len(dead),
        "search_seconds": summary.search_seconds,
        "training_seconds": summary.training_seconds,
    }


def _cell_means(cell: Cell) -> dict[str, float | None]:
    """Returns means over the seeds of a cell; None where no run recorded the quantity."""
    by_run = [_quantities(run.summary) for run in cell.runs]
    means: dict[str, float | None] = {}
    for name in by_run[0]:
        known = [value for run in by_run if (value := run[name]) is not None]
        means[name] = statistics.fmean(known) if known else None
    return means


def cell_rows(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Returns a row for each cell, numbers unrounded."""
    return [
        {
            **_where(section, line, cell),
            "seeds": len(cell.runs),
            "mean_accuracy": numbers.accuracy(cell).mean,
            "std_accuracy": numbers.accuracy(cell).std,
            "ahead": (cell.density, line.name) in _ahead(section),
            **_cell_means(cell),
        }
        for section in sections
        for line, cell in section.cells
    ]


def run_rows(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Returns a row for each run, accuracies in percent."""
    return [
        {
            **_where(section, line, cell),
            "seed": run.config.seed,
            "last_test_accuracy": 100 * run.summary.last_test_accuracy,
            "best_test_accuracy": 100 * run.summary.best_test_accuracy,
            "best_epoch": run.summary.best_epoch,
            **_quantities(run.summary),
            "dead_layers": " ".join(run.summary.dead_layers or ()),
            "mask_sha256": run.summary.mask_sha256,
            "folder": str(run.folder),
        }
        for section in sections
        for line, cell in section.cells
        for run in cell.runs
    ]


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
