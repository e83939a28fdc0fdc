"""From times to what people read: ratios with their spread, rates, fractions of the peak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.benchmark.types import MATMUL, MATMUL_SIZE, OURS, STEP, Measurement, SideTimes


class Quartiles(NamedTuple):
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float


class Memory(NamedTuple):
    """MiB of a process.

    Attributes:
        before: what it held before the first step.
        step: what it held more at its peak, compilation included.
        warm_step: what it held more at its peak once everything was compiled; None where there was
            no warm-up, or the system does not tell.
    """

    before: float
    step: float
    warm_step: float | None


class Side(NamedTuple):
    """One side of a case.

    Attributes:
        name: `OURS` or one of PyTorch's layouts.
        seconds: of a step.
        gflops: nominal 10^9 operations a second; None where none are counted.
        of_peak: that, as a fraction of the matrix product's.
        memory: of the process.
    """

    name: str
    seconds: Quartiles
    gflops: float | None
    of_peak: float | None
    memory: Memory


class Extra(NamedTuple):
    """Something that was timed beside our step.

    Attributes:
        name: what.
        seconds: how long it took.
        step_ratio: time of the case's step over its time.
        torch_ratio: its time over that of the same by PyTorch, or else of PyTorch's step; None
            without PyTorch.
    """

    name: str
    seconds: Quartiles
    step_ratio: Quartiles
    torch_ratio: Quartiles | None


class Summary(NamedTuple):
    """What is said of a case.

    Attributes:
        name: of the case.
        rounds: how many counted.
        ours: our side.
        torch: PyTorch's in the layout that was faster; None without PyTorch.
        ratio: our time over its time, round by round; None without PyTorch.
        peak: GFLOP/s of the matrix product: the better side's median; None where not taken.
        compile_seconds: ours.
        not_scoring_seconds: of a search: neither compilation nor scoring; else None.
        extras: what was timed beside.
    """

    name: str
    rounds: int
    ours: Side
    torch: Side | None
    ratio: Quartiles | None
    peak: float | None
    compile_seconds: float
    not_scoring_seconds: float | None
    extras: list[Extra]


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


def summarise(measurement: Measurement) -> Summary:
    """Says what the times of a case mean."""
    sides = measurement.sides
    ours = sides[OURS]
    peak = _peak(list(sides.values()))

    def describe(name: str) -> Side:
        times = sides[name]
        seconds = quartiles(times.seconds[STEP])
        rate = None if measurement.flops is None else measurement.flops / seconds.median / 1e9
        return Side(
            name=name,
            seconds=seconds,
            gflops=rate,
            of_peak=None if rate is None or peak is None else rate / peak,
            memory=_memory(times),
        )

    torch = min(
        (describe(name) for name in sides if name != OURS),
        key=lambda side: side.seconds.median,
        default=None,
    )
    theirs = None if torch is None else sides[torch.name].seconds
    return Summary(
        name=measurement.case.name,
        rounds=len(ours.seconds[STEP]),
        ours=describe(OURS),
        torch=torch,
        ratio=None if theirs is None else ratio(ours.seconds[STEP], theirs[STEP]),
        peak=peak,
        compile_seconds=_compile_seconds(ours),
        not_scoring_seconds=ours.details.get("not_scoring_seconds", [None])[0],
        extras=[
            Extra(
                name=name,
                seconds=quartiles(seconds),
                step_ratio=ratio(ours.seconds[STEP], seconds),
                torch_ratio=None
                if theirs is None
                else ratio(seconds, theirs.get(name, theirs[STEP])),
            )
            for name, seconds in ours.seconds.items()
            if name not in (STEP, MATMUL)
        ],
    )


def _peak(sides: Sequence[SideTimes]) -> float | None:
    medians = [quartiles(side.seconds[MATMUL]).median for side in sides if MATMUL in side.seconds]
    return 2 * MATMUL_SIZE**3 / min(medians) / 1e9 if medians else None


def _memory(times: SideTimes) -> Memory:
    before, warm = times.memory_before, times.memory_peak_warm
    return Memory(
        before, times.memory_peak - before, None if warm is None else max(0.0, warm - before)
    )


def _compile_seconds(ours: SideTimes) -> float:
    """What the first call took longer than a later one; a search says it itself."""
    if "compile_seconds" in ours.details:
        return ours.details["compile_seconds"][0]
    extra = ours.first_seconds[STEP] - quartiles(ours.seconds[STEP]).median
    return ours.compile_seconds + max(0.0, extra)
