"""From times to what people read: ratios with their spread, rates, tables."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from experiments.benchmark import types
from experiments.benchmark.types import MATMUL, MATMUL_SIZE, OURS, STEP, Case

T = TypeVar("T")


@dataclass(frozen=True)
class Quartiles:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Side:
    """One side of a case.

    Attributes:
        name: `OURS` or one of PyTorch's layouts.
        seconds: of a step.
        gflops: nominal 10^9 operations a second; None where none are counted.
        of_peak: that, as a fraction of the matrix product's.
        memory: MiB that the process held before the first step; NaN if not on Linux, as the others.
        memory_more: MiB that it held more at its peak, compilation included.
        memory_warm: MiB that it held more at its peak once all was compiled; None where compilation
            is part of the time.
    """

    name: str
    seconds: Quartiles
    gflops: float | None
    of_peak: float | None
    memory: float
    memory_more: float
    memory_warm: float | None


@dataclass(frozen=True)
class Summary:
    """What is said of a step of a case.

    Attributes:
        name: of the case, and of the step if that is not `STEP`; what the row of a table is called.
        step: `STEP`, or the name of something that was timed beside it.
        ours: our side.
        torch: PyTorch's in the layout that was faster; None without PyTorch.
        ratio: our time over its time, round by round; None without PyTorch. Where PyTorch's side
            has no such step, over the time of its `STEP`.
        peak: GFLOP/s of the matrix product: the better side's median; None where not taken.
        compile_seconds: that our side spent on compilation: of a cold case within the step, else
            with what came before it.
    """

    name: str
    step: str
    ours: Side
    torch: Side | None
    ratio: Quartiles | None
    peak: float | None
    compile_seconds: float


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


def summarise(case: Case, sides: Mapping[str, types.Side]) -> list[Summary]:
    """Says what the times of a case mean: of its step, and of each that was timed beside it."""
    steps = list(sides[OURS].rounds[0].seconds)
    peak = None
    if MATMUL in steps:
        steps.remove(MATMUL)
        fastest = min(quartiles(side.seconds(MATMUL)).median for side in sides.values())
        peak = 2 * MATMUL_SIZE**3 / fastest / 1e9
    return [_summarise(case, sides, step, peak) for step in steps]


def _summarise(
    case: Case, sides: Mapping[str, types.Side], step: str, peak: float | None
) -> Summary:
    ours = sides[OURS]
    described = {
        name: _side(name, side, step, ours.ready.flops, peak) for name, side in sides.items()
    }
    theirs = [side for name, side in described.items() if name != OURS]
    torch = min(theirs, key=lambda side: side.seconds.median, default=None)
    compiling = [taken.compile_seconds[step] for taken in (*ours.warm_up, *ours.rounds)]
    return Summary(
        name=case.name if step == STEP else f"{case.name}, {step}",
        step=step,
        ours=described[OURS],
        torch=torch,
        ratio=None if torch is None else ratio(ours.seconds(step), sides[torch.name].seconds(step)),
        peak=peak,
        compile_seconds=sum(compiling, 0.0 if case.cold else ours.ready.compile_seconds),
    )


def _side(name: str, side: types.Side, step: str, flops: float | None, peak: float | None) -> Side:
    def more(rounds: Sequence[types.Round]) -> float:
        peaks = [taken.memory_peak for taken in rounds]
        return float(np.maximum(0, np.max(peaks) - side.ready.memory))  # NaN if one of them is.

    seconds = quartiles(side.seconds(step))
    gflops = None if flops is None or step != STEP else flops / seconds.median / 1e9
    return Side(
        name=name,
        seconds=seconds,
        gflops=gflops,
        of_peak=None if gflops is None or peak is None else gflops / peak,
        memory=side.ready.memory,
        memory_more=more([*side.warm_up, *side.rounds]),
        memory_warm=more(side.rounds) if side.warm_up else None,
    )


# -- Tables --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A table, its first column text and its others numbers; the legend is below it."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    legend: str


def make_table(
    title: str, columns: Mapping[str, Callable[[T], str]], items: Iterable[T], legend: str
) -> Table:
    """Makes a table with a row for each item; `columns` maps a heading to what stands below it."""
    rows = [tuple(show(item) for show in columns.values()) for item in items]
    return Table(title, tuple(columns), rows, legend)


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


def describe(summary: Summary) -> str:
    """Returns what is said of a case as soon as it is done."""
    ours = f"{summary.name}: {number(1e3 * summary.ours.seconds.median)} ms"
    return ours if summary.ratio is None else f"{ours}, ours / PyTorch {interval(summary.ratio)}"


def tables(summaries: Sequence[Summary]) -> list[Table]:
    """Makes the tables of times, and of compilation and memory."""
    percent = "{:.0%}".format
    times: dict[str, Callable[[Summary], str]] = {
        "case": lambda s: s.name,
        "ours, ms": lambda s: number(1e3 * s.ours.seconds.median),
        "PyTorch, ms": lambda s: _cell(
            s.torch, lambda side: f"{number(1e3 * side.seconds.median)} {side.name[0].upper()}"
        ),
        "ours / PyTorch": lambda s: _cell(s.ratio, interval),
        "GFLOP/s": lambda s: _cell(s.ours.gflops, number),
        "of peak": lambda s: _cell(s.ours.of_peak, percent),
        "PyTorch's": lambda s: _cell(s.torch and s.torch.of_peak, percent),
    }
    resources: dict[str, Callable[[Summary], str]] = {
        "case": lambda s: s.name,
        "compile, s": lambda s: f"{s.compile_seconds:.1f}",
        "memory, MiB": lambda s: _memory(s.ours),
        "once compiled": lambda s: _cell(s.ours.memory_warm, "+ {:.0f}".format),
        "PyTorch's": lambda s: _cell(s.torch, _memory),
    }
    return [
        make_table(
            "Times",
            times,
            summaries,
            "Medians; in brackets the quartiles of the ratio over the rounds. PyTorch in the "
            "faster of its layouts: N is NCHW, C channels last. GFLOP/s are ours, nominal: the "
            "same operations for both sides. Peak is a float32 matrix product in the same rounds.",
        ),
        make_table(
            "Compilation and memory",
            resources,
            [summary for summary in summaries if summary.step == STEP],
            "Compilation is ours, with that of what prepares the step. Memory: what the process "
            "held before the first step, and what it held more at its peak, compilation included. "
            "Once compiled: the peak of the rounds after the first.",
        ),
    ]


def _cell(value: T | None, show: Callable[[T], str]) -> str:
    return "–" if value is None else show(value)


def _memory(side: Side) -> str:
    return f"{side.memory:.0f} + {side.memory_more:.0f}"


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


def to_json(content: Mapping[str, Any]) -> str:
    """Returns what was measured, in which there may be dataclasses, as JSON."""
    return json.dumps(content, indent=1, default=dataclasses.asdict) + "\n"
