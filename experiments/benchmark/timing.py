"""Times a case: the sides take turns, so that what disturbs the machine disturbs all of them."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmark import child
from experiments.benchmark.types import OURS, Case, Prepared, Ready, Round, Side

WARM_UP, TIME = "warm up", "time"
"""What a child can be told; after the former, the peak of its memory starts again."""


def measure(case: Case, sides: Sequence[str], *, repeats: int, cores: int) -> dict[str, Side]:
    """Times a case; returns what was measured of each side.

    Every side has a fresh process. They start together, and then only one works at a time: in every
    round each side takes its steps once, and the side that goes first changes from round to round.

    Args:
        case: what to time.
        sides: whose step: `OURS` and PyTorch's layouts.
        repeats: rounds that count, unless the case is a cold one.
        cores: how many threads PyTorch may start (XLA takes the cores that the process may use).

    Raises:
        ChildLost: a process failed or ended.
    """
    with contextlib.ExitStack() as stack:
        asks = {
            side: stack.enter_context(child.start(title(side), serve, side, case, cores))
            for side in sides
        }
        measured = {side: Side(ask(None), [], []) for side, ask in asks.items()}
        if not case.cold:
            for side, ask in asks.items():
                measured[side].warm_up.append(ask(WARM_UP))
        for number in range(1 if case.cold else repeats):
            first = number % len(sides)
            for side in (*sides[first:], *sides[:first]):
                measured[side].rounds.append(asks[side](TIME))
    return measured


def title(side: str) -> str:
    """Returns the name of a side in messages."""
    return "our process" if side == OURS else f"PyTorch's process ({side.replace('_', ' ')})"


def serve(side: str, case: Case, cores: int) -> tuple[Ready, child.Answer]:
    """What a child does: it prepares, then takes its steps once for each order."""
    # Compilations are timed: none may come from a cache. Both sides are for the CPU.
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    os.environ["JAX_PLATFORMS"] = "cpu"
    prepared = prepare(side, case, cores)
    give_back()
    ready = Ready(prepared.versions, prepared.flops, prepared.compile_seconds(), memory(HELD))

    def take(order: str) -> Round:
        seconds, compile_seconds = {}, {}
        for name, step in prepared.steps.items():
            started, compiled = time.perf_counter(), prepared.compile_seconds()
            step()
            seconds[name] = time.perf_counter() - started
            compile_seconds[name] = prepared.compile_seconds() - compiled
        measured = Round(seconds, compile_seconds, memory(PEAK))
        if order == WARM_UP:
            reset_peak()
        return measured

    return ready, take


def prepare(side: str, case: Case, cores: int) -> Prepared:
    """Prepares one side of a case in this process."""
    if side == OURS:
        from experiments.benchmark import ours

        return ours.prepare(case)
    # Without JAX, which would count as memory of PyTorch's.
    from experiments.benchmark import torch_side

    return torch_side.prepare(case, layout=side, cores=cores)


# -- Memory ----------------------------------------------------------------------------------------

HELD, PEAK = "VmRSS", "VmHWM"
"""What the process holds, and what it held at most."""


def memory(what: str) -> float:
    """Returns MiB of this process; NaN where the system is not Linux.

    Not `ru_maxrss`, which starts at what the *parent* held when it started the process.
    """
    path = Path("/proc/self/status")
    status = path.read_text() if path.exists() else ""
    match = re.search(rf"^{what}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(match[1]) / 1024 if match else math.nan


def give_back() -> None:
    """Gives what was freed, such as a compiler's memory, back to the system, where glibc is."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> None:
    """Lets the peak start again from what is in use now, where the system can."""
    give_back()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
