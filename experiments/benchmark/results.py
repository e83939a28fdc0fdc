"""The results as tables on the screen, as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.benchmark.summaries import Quartiles, Summary
from experiments.benchmark.types import Measurement

NONE = "–"


class Table(NamedTuple):
    """A table, its first column text and its others numbers; the legend is below it."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    legend: str


def number(value: float) -> str:
    """Returns three significant digits, or all before the point.

    Example:
        >>> number(0.01234), number(12.34), number(123456.7)
        ('0.0123', '12.3', '123,457')
    """
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, digits)}f}"


def interval(values: Quartiles) -> str:
    """Returns a ratio with its quartiles.

    Example:
        >>> interval(Quartiles(0.853, 0.84, 0.9))
        '0.85 (0.84 to 0.90)'
    """
    return f"{values.median:.2f} ({values.low:.2f} to {values.high:.2f})"


def tables(summaries: Sequence[Summary]) -> list[Table]:
    """Makes the tables, with a row a case."""
    return [
        Table(
            "Times",
            (
                "case",
                "ours, ms",
                "PyTorch, ms",
                "ours / PyTorch",
                "GFLOP/s",
                "of peak",
                "PyTorch's",
            ),
            [_times(summary) for summary in summaries],
            "Medians; in brackets the quartiles of the ratio over the rounds. PyTorch in the "
            "faster of its layouts: N is NCHW, C channels last. GFLOP/s are ours, nominal: the "
            "same operations for both sides; peak is a float32 matrix product in the same rounds.",
        ),
        Table(
            "Compilation and memory",
            ("case", "compile, s", "memory, MiB", "once compiled", "PyTorch's"),
            [_resources(summary) for summary in summaries],
            "Memory: what the process held before the first step + what it held more at its peak, "
            "compilation included; once compiled: that of the rounds after the first.",
        ),
    ]


def _times(summary: Summary) -> tuple[str, ...]:
    ours, torch = summary.ours, summary.torch
    return (
        summary.name,
        number(1e3 * ours.seconds.median),
        NONE if torch is None else f"{number(1e3 * torch.seconds.median)} {torch.name[0].upper()}",
        NONE if summary.ratio is None else interval(summary.ratio),
        NONE if ours.gflops is None else number(ours.gflops),
        NONE if ours.of_peak is None else f"{ours.of_peak:.0%}",
        NONE if torch is None or torch.of_peak is None else f"{torch.of_peak:.0%}",
    )


def _resources(summary: Summary) -> tuple[str, ...]:
    ours, torch = summary.ours.memory, summary.torch
    return (
        summary.name,
        f"{summary.compile_seconds:.1f}",
        f"{ours.before:.0f} + {ours.step:.0f}",
        NONE if ours.warm_step is None else f"+ {ours.warm_step:.0f}",
        NONE if torch is None else f"{torch.memory.before:.0f} + {torch.memory.step:.0f}",
    )


def notes(summaries: Sequence[Summary]) -> list[str]:
    """Makes the sentences about what has no column."""
    sentences = []
    for summary in summaries:
        for extra in summary.extras:
            against = (
                ""
                if extra.torch_ratio is None
                else f", {interval(extra.torch_ratio)} times PyTorch's time"
            )
            sentences.append(
                f"{summary.name}: {extra.name} takes {number(1e3 * extra.seconds.median)} ms"
                f"{against}; the case takes {interval(extra.step_ratio)} times as long as that."
            )
        if summary.not_scoring_seconds is not None:
            share = summary.not_scoring_seconds / summary.ours.seconds.median
            sentences.append(
                f"{summary.name}: {summary.compile_seconds:.1f} s are compilation; "
                f"{summary.not_scoring_seconds:.2f} s ({share:.1%}) are neither that nor scoring."
            )
    peaks = [summary.peak for summary in summaries if summary.peak is not None]
    if peaks:
        sentences.append(
            f"Matrix product: {number(min(peaks))} to {number(max(peaks))} GFLOP/s, by case."
        )
    return sentences


def markdown(summaries: Sequence[Summary], setting: Sequence[tuple[str, str]]) -> str:
    """Returns the tables, their legends, the notes and the setting, as Markdown."""
    items = [*notes(summaries), *(f"{name}: {value}" for name, value in setting)]
    shown = [table_as_markdown(table) for table in tables(summaries)]
    return "\n".join([*shown, *(f" - {item}" for item in items), ""])


def table_as_markdown(table: Table) -> str:
    """Returns a table and its legend as Markdown."""
    lines = [f"| {' | '.join(table.header)} |", f"|---|{'---:|' * (len(table.header) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in table.rows]
    return "\n".join([*lines, "", table.legend, ""])


def to_json(
    measurements: Sequence[Measurement],
    summaries: Sequence[Summary],
    setting: Mapping[str, Any],
) -> str:
    """Returns all that was measured, raw times included, and the summaries."""
    cases = [
        {**dataclasses.asdict(measurement), "summary": _plain(summary)}
        for measurement, summary in zip(measurements, summaries, strict=True)
    ]
    return json.dumps({"setting": setting, "cases": cases}, indent=1) + "\n"


def _plain(value: Any) -> Any:
    """Turns named tuples into dictionaries, at any depth."""
    if hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
