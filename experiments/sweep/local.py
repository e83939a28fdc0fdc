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
from collections.abc import Generator, Sequence
from multiprocessing import connection as connections
from pathlib import Path
from typing import Any

import numpy as np
import pooch

import experiments
from experiments.sweep.cells import Cell, Ended
from experiments.sweep.worker import STOP_SECONDS


def run(cells: Sequence[Cell], *, num_workers: int) -> Generator[Ended]:
    """Carries out cells in worker processes, begun in this order; yields how each ended.

    Close the iterator (`contextlib.closing`), or run it to its end: the workers are then told to
    save and end, and killed if they do not. Ctrl-C and SIGTERM are the caller's to handle.
    """
    pending = list(reversed(cells))
    environment = _environment(num_workers)
    workers: list[subprocess.Popen[str]] = []
    at_work: dict[Any, tuple[subprocess.Popen[str], tuple[int, ...], Cell, float]] = {}

    def hand_out(cores: tuple[int, ...], worker: subprocess.Popen[str] | None = None) -> None:
        if worker is None:
            worker = _start(cores, environment)
            workers.append(worker)
        cell = pending.pop()
        at_work[worker.stdout] = worker, cores, cell, time.monotonic()
        words = json.dumps([cell.module, cell.arguments, str(cell.folder)])
        # If the worker is gone, that is noticed when its answer is awaited.
        with contextlib.suppress(BrokenPipeError):
            print(words, file=worker.stdin, flush=True)

    try:
        for cores in share_cores(available_cores(), num_workers)[: len(cells)]:
            hand_out(cores)
        while at_work:
            answering: Any = connections.wait(list(at_work))
            for answers in answering:
                worker, cores, cell, started = at_work.pop(answers)
                answer, seconds = answers.readline(), time.monotonic() - started
                code = int(answer) if answer else worker.wait()
                if pending:
                    hand_out(cores, worker if answer else None)
                lost = f"its process ended with exit code {code}: see what it printed"
                yield Ended(cell, code, seconds, "" if answer or code < 0 else lost)
    finally:
        _stop(workers)


def available_cores() -> tuple[int, ...]:
    """Returns the cores that this process may run on; the numbers mean nothing but on Linux."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def share_cores(cores: Sequence[int], num_processes: int) -> list[tuple[int, ...]]:
    """Deals cores out to processes; if there are too few, several processes get the same one."""
    parts = np.array_split(cores, num_processes)
    return [tuple(part.tolist()) or (cores[i % len(cores)],) for i, part in enumerate(parts)]


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
    defaults = {
        # Cells of the same network compile the same programs, which are often small.
        "JAX_COMPILATION_CACHE_DIR": str(Path(pooch.os_cache("ntksap_jax")) / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    if num_workers > 1:  # JAX alone takes three quarters of a GPU's memory.
        defaults["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / num_workers:.3f}"
    return {**defaults, **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def _stop(workers: Sequence[subprocess.Popen[str]]) -> None:
    """Has cells that run save and end; kills what does not."""
    for worker in workers:
        assert worker.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.close()
    deadline = time.monotonic() + STOP_SECONDS
    for worker in workers:
        with worker:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(max(0.0, deadline - time.monotonic()))
            worker.kill()
