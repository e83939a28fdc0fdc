"""Cells on this machine, by worker processes that each have a share of the cores.

A worker that is killed, by the system for want of memory or by hand, costs the cell that it was
at: another process takes its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from multiprocessing import connection as connections
from pathlib import Path
from typing import Any, NamedTuple

import pooch

import experiments
from experiments.sweep.cells import STOP_SECONDS, Cell, Ended


class _AtWork(NamedTuple):
    worker: subprocess.Popen[str]
    cell: Cell
    started: float


def run(
    cells: Sequence[Cell], *, num_workers: int, on_start: Callable[[Cell], None]
) -> Generator[Ended]:
    """Carries out cells in worker processes; yields how each ended as it ends.

    Close the iterator (`contextlib.closing`), or run it to its end: the workers are then told to
    save and end, and killed if they do not. Ctrl-C and SIGTERM are the caller's to handle.

    Args:
        cells: in the order in which they are begun.
        num_workers: number of processes.
        on_start: called with a cell when it is handed out.
    """
    pending = list(reversed(cells))
    shares = share_cores(available_cores(), num_workers)
    environment = _environment(num_workers)
    at_work: dict[Any, _AtWork] = {}
    workers: dict[subprocess.Popen[str], tuple[int, ...]] = {}

    def start(share: tuple[int, ...]) -> subprocess.Popen[str]:
        worker = _start(share, environment)
        workers[worker] = share
        return worker

    def hand_out(worker: subprocess.Popen[str]) -> None:
        cell = pending.pop()
        at_work[worker.stdout] = _AtWork(worker, cell, time.monotonic())
        on_start(cell)
        assert worker.stdin is not None
        # If the worker is gone, that is noticed when its answer is awaited.
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write(json.dumps([cell.module, cell.arguments, str(cell.folder)]) + "\n")
            worker.stdin.flush()

    try:
        for share in shares[: len(cells)]:
            hand_out(start(share))
        while at_work:
            answering: Any = connections.wait(list(at_work))
            for answers in answering:
                worker, cell, started = at_work.pop(answers)
                answer, seconds = answers.readline(), time.monotonic() - started
                code = int(answer) if answer else worker.wait()
                if pending:
                    hand_out(worker if answer else start(workers[worker]))
                yield Ended(cell, code, seconds)
    finally:
        _stop(list(workers))


def available_cores() -> tuple[int, ...]:
    """Returns the cores that this process may run on; the numbers mean nothing but on Linux."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def share_cores(cores: Sequence[int], num_processes: int) -> list[tuple[int, ...]]:
    """Deals cores out to processes; if there are too few, several processes get the same one.

    >>> share_cores([0, 1, 2, 3, 4], 2), share_cores([0, 1], 3)
    ([(0, 1, 2), (3, 4)], [(0,), (1,), (0,)])
    """
    if num_processes > len(cores):
        return [(cores[index % len(cores)],) for index in range(num_processes)]
    size, more = divmod(len(cores), num_processes)
    ends = [index * size + min(index, more) for index in range(num_processes + 1)]
    return [tuple(cores[start:end]) for start, end in zip(ends, ends[1:], strict=False)]


def _start(share: Sequence[int], environment: dict[str, str]) -> subprocess.Popen[str]:
    can_pin = hasattr(os, "sched_setaffinity")
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep.worker", *map(str, share if can_pin else ())],
        env=environment if can_pin else {"NPROC": str(len(share)), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A Ctrl-C at the terminal goes to the sweep alone.
        start_new_session=True,
    )


def _environment(num_workers: int) -> dict[str, str]:
    """Returns the variables of a worker. What the user set stays."""
    path = [str(Path(experiments.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    # Cells of the same network compile the same programs, which are often small.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(Path(pooch.os_cache("ntksap_jax")) / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    # JAX alone takes three quarters of a GPU's memory.
    memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / num_workers:.3f}"}
    path_variable = {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    return {**cache, **(memory if num_workers > 1 else {}), **os.environ, **path_variable}


def _stop(workers: Sequence[subprocess.Popen[str]]) -> None:
    """Has cells that run save and end; kills what does not."""
    for worker in workers:
        assert worker.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.close()
    deadline = time.monotonic() + STOP_SECONDS
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(max(0.0, deadline - time.monotonic()))
        worker.kill()
        worker.wait()
        assert worker.stdout is not None
        worker.stdout.close()
