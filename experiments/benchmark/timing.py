"""Times a case: the sides take turns, so that what disturbs the machine disturbs all of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmark import child
from experiments.benchmark.types import (
    MATMUL,
    OURS,
    Case,
    Measurement,
    Prepared,
    Ready,
    Round,
    Side,
)


def measure(case: Case, sides: Sequence[str], *, repeats: int, cores: int) -> Measurement:
    """Times a case.

    Every side has a fresh process. They start together, and then only one works at a time: in every
    round each side takes its steps once, and the side that goes first changes from round to round.

    Args:
        case: what to time.
        sides: whose step: `OURS` and PyTorch's layouts.
        repeats: rounds that count, unless the case takes fewer.
        cores: how many threads PyTorch may start (XLA takes the cores that the process may use).

    Raises:
        ChildLost: a process failed or ended.
    """
    with contextlib.ExitStack() as stack:
        children = {
            side: stack.enter_context(child.start(title(side), serve, side, case, cores))
            for side in sides
        }
        ready = {side: child.ask(process) for side, process in children.items()}
        warm = {
            side: child.ask(process, "warm up")
            for side, process in children.items()
            if case.warm_up
        }
        rounds: dict[str, list[Round]] = {side: [] for side in sides}
        for number in range(min(repeats, case.max_repeats or repeats)):
            first = number % len(sides)
            for side in (*sides[first:], *sides[:first]):
                rounds[side].append(child.ask(children[side], "time"))
    measured = {side: Side(ready[side], warm.get(side), rounds[side]) for side in sides}
    return Measurement(case, measured)


def title(side: str) -> str:
    """Returns the name of a side in messages."""
    return "our process" if side == OURS else f"PyTorch's process ({side.replace('_', ' ')})"


def serve(side: str, case: Case, cores: int) -> tuple[Ready, child.Answer]:
    """What a child does: it prepares, then takes its steps once for each order."""
    # Compilations are timed: none may come from a cache. Both sides are for the CPU.
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    os.environ["JAX_PLATFORMS"] = "cpu"
    prepared = prepare(side, case, cores)
    _give_back()
    ready = Ready(prepared.versions, prepared.flops, prepared.compile_seconds, _resident())
    most, is_reset = 0.0, False

    def take(order: str) -> Round:
        nonlocal most, is_reset
        seconds = {}
        for name, step in prepared.steps.items():
            started = time.perf_counter()
            step()
            seconds[name] = time.perf_counter() - started
        peak = _peak()
        most = max(most, peak)
        measured = Round(seconds, most, peak if is_reset else None)
        if order == "warm up":
            is_reset = _reset_peak()
        return measured

    return ready, take


def prepare(side: str, case: Case, cores: int) -> Prepared:
    """Prepares one side of a case in this process, with the matrix product where rates count."""
    if side == OURS:
        from experiments.benchmark import ours

        prepared, matmul = ours.prepare(case), ours.matmul
    else:  # Without JAX, which would count as memory of PyTorch's.
        from experiments.benchmark import torch_side

        prepared, matmul = torch_side.prepare(case, layout=side, cores=cores), torch_side.matmul
    if not case.has_flops:
        return prepared
    product = matmul()
    product()
    return prepared._replace(steps={**prepared.steps, MATMUL: product})


# -- Memory, in MiB ------------------------------------------------------------------------------


def _resident() -> float:
    """Returns what the process holds now; where the system does not tell, its peak."""
    held = _status("VmRSS")
    return _peak() if held is None else held


def _peak() -> float:
    """Returns what the process held at most.

    On Linux not `ru_maxrss`, which starts at what the *parent* held when it started the process.
    """
    most = _status("VmHWM")
    if most is not None:
        return most
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _give_back() -> None:
    """Gives what was freed, such as a compiler's memory, back to the system, where glibc is."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> bool:
    """Lets the peak start again from what is in use now; returns False where that cannot be."""
    _give_back()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def _status(name: str) -> float | None:
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    match = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    return int(match[1]) / 1024 if match else None
