"""From times to what people read: ratios with their spread, rates, tables."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmark import types
from experiments.benchmark.types import MATMUL, MATMUL_SIZE, OURS, STEP, Measurement

NONE = "–"


class Quartiles(NamedTuple):
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float


class Side(NamedTuple):
    """One side of a case.

    Attributes:
        name: `OURS` or one of PyTorch's layouts.
        seconds: of a step.
        gflops: nominal 10^9 operations a second; None where none are counted.
        of_peak: that, as a fraction of the matrix product's.
        memory: MiB that the process held before the first step, where that is known.
        memory_more: MiB that it held more at its peak, compilation included.
        memory_warm: MiB that it held more at its peak once all was compiled.
    """

    name: str
    seconds: Quartiles
    gflops: float | None
    of_peak: float | None
    memory: float | None
    memory_more: float | None
    memory_warm: float | None


class Summary(NamedTuple):
    """What is said of a step of a case.

    Attributes:
        case: name of the case.
        step: `STEP`, or the name of something that was timed beside it.
        ours: our side.
        torch: PyTorch's in the layout that was faster; None without PyTorch.
        ratio: our time over its time, round by round; None without PyTorch. Where PyTorch's side
            has no such step, over the time of its `STEP`.
        peak: GFLOP/s of the matrix product: the better side's median; None where not taken.
        compile_seconds: ours; None where compilation is part of the time.
    """

    case: str
    step: str
    ours: Side
    torch: Side | None
    ratio: Quartiles | None
    peak: float | None
    compile_seconds: float | None

    @property
    def name(self) -> str:
        """What the row of a table is called."""
        return self.case if self.step == STEP else f"{self.case}, {self.step}"


def quartiles(values: Sequence[float]) -> Quartiles:
    """Returns median and quartiles.

    Example:
        >>> quartiles([5.0, 1.0, 2.0, 3.0, 4.0])
        Quartiles(median=3.0, low=2.0, high=4.0)
    """
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return Quartiles(median, low, high)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Quartiles:
    """Returns the quartiles of the ratio within each round, in which a disturbance cancels.

    Example:
        >>> ratio([1.0, 20.0, 1.0], [2.0, 40.0, 2.0])
        Quartiles(median=0.5, low=0.5, high=0.5)
    """
    return quartiles([a / b for a, b in zip(ours, theirs, strict=True)])


def summarise(measurement: Measurement) -> list[Summary]:
    """Says what the times of a case mean: of its step, and of each that was timed beside it."""
    sides = measurement.sides.values()
    products = [
        quartiles(side.seconds(MATMUL)).median for side in sides if MATMUL in side.rounds[0].seconds
    ]
    peak = 2 * MATMUL_SIZE**3 / min(products) / 1e9 if products else None
    names = [name for name in measurement.sides[OURS].rounds[0].seconds if name != MATMUL]
    return [_summarise(measurement, name, peak) for name in names]


def _summarise(measurement: Measurement, step: str, peak: float | None) -> Summary:
    sides = measurement.sides
    ours = sides[OURS]
    described = {
        name: _side(name, side, step, ours.ready.flops, peak) for name, side in sides.items()
    }
    torch = min(
        (side for name, side in described.items() if name != OURS),
        key=lambda side: side.seconds.median,
        default=None,
    )
    compile_seconds = None
    if ours.warm_up is not None:
        more = ours.warm_up.seconds[step] - described[OURS].seconds.median
        compile_seconds = ours.ready.compile_seconds + max(0.0, more)
    return Summary(
        case=measurement.case.name,
        step=step,
        ours=described[OURS],
        torch=torch,
        ratio=None if torch is None else ratio(ours.seconds(step), sides[torch.name].seconds(step)),
        peak=peak,
        compile_seconds=compile_seconds,
    )


def _side(name: str, side: types.Side, step: str, flops: float | None, peak: float | None) -> Side:
    seconds = quartiles(side.seconds(step))
    gflops = None if flops is None or step != STEP else flops / seconds.median / 1e9
    warm = _more(side, side.rounds)
    cold = _more(side, [side.warm_up]) if side.warm_up else warm
    return Side(
        name=name,
        seconds=seconds,
        gflops=gflops,
        of_peak=None if gflops is None or peak is None else gflops / peak,
        memory=side.ready.memory,
        memory_more=None if cold is None or warm is None else max(cold, warm),
        memory_warm=warm if side.warm_up else None,
    )


def _more(side: types.Side, rounds: Sequence[types.Round]) -> float | None:
    """Returns the MiB that a side held more than before its first step."""
    before, peaks = side.ready.memory, [measured.memory_peak for measured in rounds]
    known = [peak for peak in peaks if peak is not None]
    return max(0.0, max(known) - before) if known and before is not None else None


# -- Tables --------------------------------------------------------------------------------------


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
    """Makes the tables of times, and of compilation and memory."""
    header = (
        "case",
        "ours, ms",
        "PyTorch, ms",
        "ours / PyTorch",
        "GFLOP/s",
        "of peak",
        "PyTorch's",
    )
    times = Table(
        "Times",
        header,
        [_times(summary) for summary in summaries],
        "Medians; in brackets the quartiles of the ratio over the rounds. PyTorch in the faster of "
        "its layouts: N is NCHW, C channels last. GFLOP/s are ours, nominal: the same operations "
        "for both sides. Peak is a float32 matrix product in the same rounds.",
    )
    resources = Table(
        "Compilation and memory",
        ("case", "compile, s", "memory, MiB", "once compiled", "PyTorch's"),
        [_resources(summary) for summary in summaries if summary.step == STEP],
        "Memory: what the process held before the first step, and what it held more at its peak, "
        "compilation included. Once compiled: the peak of the rounds after the first.",
    )
    return [times, resources]


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
    ours, torch = summary.ours, summary.torch
    return (
        summary.name,
        NONE if summary.compile_seconds is None else f"{summary.compile_seconds:.1f}",
        _memory(ours),
        NONE if ours.memory_warm is None else f"+ {ours.memory_warm:.0f}",
        NONE if torch is None else _memory(torch),
    )


def _memory(side: Side) -> str:
    return NONE if side.memory is None else f"{side.memory:.0f} + {side.memory_more:.0f}"


def peak_text(summaries: Sequence[Summary]) -> str:
    """Says how fast the matrix product was."""
    peaks = [summary.peak for summary in summaries if summary.peak is not None]
    if not peaks:
        return "not taken"
    return f"{number(min(peaks))} to {number(max(peaks))} GFLOP/s, by case"


def markdown(shown: Sequence[Table], items: Sequence[str] = ()) -> str:
    """Returns tables with their legends, and a list of sentences, as Markdown."""
    lines = []
    for table in shown:
        rule = "---|" + "---:|" * (len(table.header) - 1)
        lines += [f"| {' | '.join(table.header)} |", f"|{rule}"]
        lines += [f"| {' | '.join(row)} |" for row in table.rows]
        lines += ["", table.legend, ""]
    return "\n".join([*lines, *(f" - {item}" for item in items), ""])


def to_json(
    measurements: Sequence[Measurement],
    other_tables: Sequence[Table],
    setting: Mapping[str, Any],
) -> str:
    """Returns all that was measured, raw times included, and what was made of it."""
    cases = [
        {
            "case": dataclasses.asdict(measured.case),
            "sides": measured.sides,
            "summaries": summarise(measured),
        }
        for measured in measurements
    ]
    content = {"setting": setting, "cases": cases, "tables": other_tables}
    return json.dumps(_plain(content), indent=1) + "\n"


def _plain(value: Any) -> Any:
    """Turns named tuples into dictionaries, at any depth."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value
