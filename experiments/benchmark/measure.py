"""Has the sides of a case take turns, so that what disturbs the machine disturbs all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from experiments.benchmark import children
from experiments.benchmark.types import Case, Measurement, SideTimes


def measure(
    case: Case,
    sides: Sequence[str],
    *,
    repeats: int,
    cores: int,
    on_version: Callable[[str, str], None] = lambda name, version: None,
) -> Measurement:
    """Times a case.

    Every side has a fresh process. They start together, and then only one works at a time: in every
    round each side takes one step, and the side that goes first changes from round to round.

    Args:
        case: what to time.
        sides: whose step: `OURS` and PyTorch's layouts.
        repeats: rounds that count, unless the case takes fewer.
        cores: how many threads PyTorch may start (XLA takes the cores that the process may use).
        on_version: told the name and version of every library that a side depends on.

    Raises:
        ChildLost: a process ended.
    """
    rounds = min(repeats, case.max_repeats or repeats)
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(children.start(side, case, cores)) for side in sides]
        ready = {child.side: children.ask(child) for child in running}
        first = {child.side: children.ask(child, "warm") for child in running if case.warm_up}
        answers: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for number in range(rounds):
            start = number % len(running)
            for child in running[start:] + running[:start]:
                answers[child.side].append(children.ask(child, "time"))

    for content in ready.values():
        for name, version in content["versions"].items():
            on_version(name, version)
    return Measurement(
        case=case,
        flops=next((c["flops"] for c in ready.values() if c["flops"] is not None), None),
        sides={
            side: SideTimes(
                seconds=_series(answers[side], "seconds"),
                first_seconds=first[side]["seconds"] if case.warm_up else {},
                compile_seconds=ready[side]["compile_seconds"],
                details=_series(answers[side], "details"),
                memory_before=ready[side]["memory_before"],
                memory_peak=answers[side][-1]["memory_peak"],
                memory_peak_warm=answers[side][-1]["memory_peak_warm"],
            )
            for side in sides
        },
    )


def _series(answers: Sequence[dict[str, Any]], what: str) -> dict[str, list[float]]:
    """Turns one dictionary a round into one list a name."""
    return {name: [answer[what][name] for answer in answers] for name in answers[0][what]}
