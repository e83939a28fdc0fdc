"""Tables of a section: accuracies, what the masks keep, single runs; as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from experiments.report import numbers
from experiments.report.comparison import Comparison
from experiments.report.numbers import Spread
from experiments.report.published import Point
from experiments.report.setups import Cell, Line, Section

NOTHING = "–"


class Table(NamedTuple):
    """A table of text; a cell that starts and ends with ** is to be bold.

    Attributes:
        header: one a column; the first column is text, the others are numbers.
        rows: cells.
    """

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


# -- For readers ---------------------------------------------------------------------------------


def accuracies(section: Section, comparisons: Sequence[Comparison] = ()) -> Table:
    """Criteria by densities; the best is bold where it is ahead by more than the deviation.

    What was published of the same set-up follows, at the densities that are ours.
    """
    densities = section.densities
    columns = [1.0, *densities] if section.dense and 1.0 not in densities else densities
    ahead = {
        density: found.best
        for density in densities
        if (found := numbers.verdict(section, density)) is not None and found.is_ahead
    }

    def text(line: Line, density: float) -> str:
        cell = line.at(density)
        if cell is None:
            return NOTHING
        shown = accuracy_text(numbers.accuracy(cell))
        return f"**{shown}**" if ahead.get(density) is line else shown

    header = ("criterion", *(density_text(density) for density in columns))
    rows = [(line.name, *(text(line, density) for density in columns)) for line in section.lines]
    for each in comparisons:
        if each.is_same:
            rows += [
                (f"{name}, published", *(_published(points, density) for density in columns))
                for name, points in each.curves.items()
            ]
    return Table(header, rows)


def _published(points: Sequence[Point], density: float) -> str:
    for point in points:
        if math.isclose(point.density, density, rel_tol=0.005):
            deviation = "" if point.std is None else f" ± {point.std:.2f}"
            about = "≈ " if point.digitised else ""
            return f"{about}{point.accuracy:.2f}{deviation}"
    return NOTHING


def verdicts(section: Section) -> list[str]:
    """Says for each density who is ahead, or that nothing is separable."""
    return [
        _verdict(found, density)
        for density in section.densities
        if (found := numbers.verdict(section, density)) is not None and found.second is not None
    ]


def _verdict(found: numbers.Verdict, density: float) -> str:
    where, best = f"At density {density_text(density)}", found.best.name
    assert found.second is not None
    second = found.second.name
    if found.pooled is None:
        return f"{where} one seed each: {best} is highest, and nothing can be said about chance."
    by = f"{found.lead:.2f} points ahead of {second} (pooled standard deviation {found.pooled:.2f})"
    if found.is_ahead:
        return f"{where} {best} is {by}."
    return f"{where} nothing is separable at the top: {best} is {by}."


def kept(section: Section) -> Table:
    """What the masks keep, and what it took: a row a criterion and density, means over seeds."""
    header = (
        "criterion",
        "density",
        "effective density",
        "FLOPs kept",
        "live channels",
        "dead layers",
        "search",
        "training",
    )
    rows = []
    for line in section.lines:
        for cell in line.cells:
            found = cell_numbers(cell)
            rows.append(
                (
                    line.name,
                    _number(found["density"], "{:.4g}"),
                    _number(found["effective_density"], "{:.4g}"),
                    _number(found["flops_kept"], "{:.1%}"),
                    _number(found["live_channels"], "{:.0%}"),
                    _number(found["dead_layers"], "{:.3g}"),
                    _number(found["search_seconds"], "{:.1f} s"),
                    _number(found["training_seconds"], "{:.0f} s"),
                )
            )
    return Table(header, rows)


def accuracy_text(value: Spread) -> str:
    """Returns `72.41 ± 0.22 (3)`: mean, standard deviation, seeds; without ± for a single seed."""
    if not value.seeds:
        return NOTHING
    deviation = "" if value.std is None else f" ± {value.std:.2f}"
    return f"{value.mean:.2f}{deviation} ({value.seeds})"


def density_text(density: float) -> str:
    """Returns a density as short as it can be told apart."""
    return f"{density:.3g}"


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else form.format(value)


def markdown(table: Table) -> str:
    """Returns a table in Markdown."""
    rule = ("---", *("---:" for _ in table.header[1:]))
    rows = (table.header, rule, *table.rows)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


# -- For programs --------------------------------------------------------------------------------


def cell_numbers(cell: Cell) -> dict[str, float | None]:
    """Returns means over the seeds of a cell; None where the runs did not record it."""
    summaries = [run.summary for run in cell.runs]

    def mean(values: Iterable[Any]) -> float | None:
        found = numbers.spread(values)
        return found.mean if found.seeds else None

    return {
        "density": mean(summary["density"] for summary in summaries),
        "effective_density": mean(summary.get("effective_density") for summary in summaries),
        "flops_kept": mean(summary["kept_flops"] / summary["dense_flops"] for summary in summaries),
        "live_channels": mean(map(mean_live_channels, summaries)),
        "dead_layers": mean(
            len(summary["dead_layers"]) if "dead_layers" in summary else None
            for summary in summaries
        ),
        "search_seconds": mean(summary["search_seconds"] for summary in summaries),
        "training_seconds": mean(summary["training_seconds"] for summary in summaries),
    }


def mean_live_channels(summary: dict[str, Any]) -> float | None:
    """Returns the share of live channels, averaged over layers."""
    shares = summary.get("live_channels")
    return sum(shares.values()) / len(shares) if shares else None


def cells_csv(sections: Sequence[Section]) -> str:
    """Returns a row a criterion and density, numbers unrounded."""
    rows = []
    for section in sections:
        for line in section.lines:
            for cell in line.cells:
                found = numbers.accuracy(cell)
                who = numbers.verdict(section, cell.density)
                values = cell_numbers(cell)
                rows.append(
                    {
                        **_where(section, line),
                        "density": cell.density,
                        "seeds": found.seeds,
                        "mean_accuracy": found.mean,
                        "std_accuracy": found.std,
                        "ahead": who is not None and who.best is line and who.is_ahead,
                        "reached_density": values.pop("density"),
                        **values,
                    }
                )
    return _csv(rows)


def runs_csv(sections: Sequence[Section]) -> str:
    """Returns a row a run, accuracies in percent."""
    rows = []
    for section in sections:
        for line in section.lines:
            for cell in line.cells:
                for run in cell.runs:
                    summary = run.summary
                    rows.append(
                        {
                            **_where(section, line),
                            "density": cell.density,
                            "seed": run.config.seed,
                            "last_test_accuracy": 100 * summary["last_test_accuracy"],
                            "best_test_accuracy": 100 * summary["best_test_accuracy"],
                            "best_epoch": summary.get("best_epoch"),
                            "reached_density": summary["density"],
                            "effective_density": summary.get("effective_density"),
                            "flops_kept": summary["kept_flops"] / summary["dense_flops"],
                            "live_channels": mean_live_channels(summary),
                            "dead_layers": " ".join(summary.get("dead_layers", ())),
                            "search_seconds": summary["search_seconds"],
                            "training_seconds": summary["training_seconds"],
                            "mask_sha256": summary.get("mask_sha256"),
                            "folder": str(run.folder),
                        }
                    )
    return _csv(rows)


def _where(section: Section, line: Line) -> dict[str, Any]:
    facts = section.facts
    return {
        "setup": section.number,
        "dataset": facts["data set"],
        "image_size": facts["image size"],
        "model": facts["network"],
        "epochs": facts["epochs"],
        "criterion": line.criterion,
        "line": line.name,
    }


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
