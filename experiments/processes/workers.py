"""Worker processes that take one task after another, each with its share of the cores.

A worker that is killed, by the system for want of memory or by hand, costs the task that it was
at: another process takes its place.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from experiments.shell import interruption
from experiments.shell.errors import Preempted

STOP_SECONDS = 10.0
"""How long a worker has to save and end when it is told to, before it is killed."""


class WorkerLost(Exception):
    """A worker process ended before it could take its first task."""


class Outcome(NamedTuple):
    """How a task ended.

    Attributes:
        task: one of the tasks.
        result: what `work` returned; None if the worker was lost.
        lost: how the worker was lost, such as `"killed by SIGKILL"`; empty if it was not.
        seconds: from handing the task out to its end.
        preempted: whether the worker was lost to SIGTERM, after it had saved what it had.
    """

    task: Any
    result: Any
    lost: str
    seconds: float
    preempted: bool = False


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    cores: tuple[int, ...]
    is_ready: bool = False
    group: Hashable = None
    task: Any = None
    started: float = 0.0


def run(
    tasks: Sequence[Any],
    work: Callable[[Any], Any],
    *,
    num_workers: int,
    group: Callable[[Any], Hashable] = lambda task: None,
    on_start: Callable[[Any], None] = lambda task: None,
) -> Generator[Outcome]:
    """Carries out tasks in worker processes; yields each outcome as it comes.

    Close the iterator (`contextlib.closing`), or run it to its end, to be sure that no worker is
    left behind. In the workers, SIGINT is ignored: Ctrl-C is the caller's to handle.

    Args:
        tasks: what to do; they are pickled, as are the results.
        work: `work(task) -> result`, a function of a module, which the workers import.
        num_workers: number of processes at most.
        group: tasks of the same group share something that is costly to prepare: a worker stays
            with the group of its last task as long as there are any.
        on_start: `on_start(task)` is called when a task is handed out.

    Raises:
        WorkerLost: a process ended while it started, as others would too.
    """
    pending: dict[Hashable, list[Any]] = {}
    for task in reversed(tasks):
        pending.setdefault(group(task), []).append(task)
    shares = share_cores(available_cores(), min(num_workers, len(tasks)))
    workers: list[_Worker] = []
    try:
        workers += [_start(work, cores) for cores in shares]
        while pending or any(worker.task is not None for worker in workers):
            for worker in workers:
                if worker.is_ready and worker.task is None and pending:
                    _hand_out(worker, pending, [other.group for other in workers])
                    on_start(worker.task)
            for connection in connections.wait([worker.connection for worker in workers]):
                worker = next(other for other in workers if other.connection is connection)
                outcome = _receive(worker)
                if outcome is None:
                    worker.is_ready = True
                    continue
                if outcome.lost:
                    workers.remove(worker)
                    if pending:
                        workers.append(_start(work, worker.cores))
                if outcome.task is not None:
                    yield outcome
    finally:
        _stop(workers)


def _hand_out(
    worker: _Worker, pending: dict[Hashable, list[Any]], taken: Sequence[Hashable]
) -> None:
    """Gives a worker a task: of its own group, or else of one that no other is at, if there is."""
    if worker.group not in pending:
        free = [group for group in reversed(pending) if group not in taken]
        worker.group = free[0] if free else max(pending, key=lambda group: len(pending[group]))
    worker.task = pending[worker.group].pop()
    if not pending[worker.group]:
        del pending[worker.group]
    worker.started = time.monotonic()
    # A worker that is gone by now is found out about when its result is awaited.
    with contextlib.suppress(BrokenPipeError):
        worker.connection.send(worker.task)


def _receive(worker: _Worker) -> Outcome | None:
    """Takes a worker's result, or notes that there will be none; nothing if it is just ready."""
    result, lost = None, ""
    try:
        result = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join(STOP_SECONDS)
        lost = _describe_end(worker.process.exitcode)
        if not worker.is_ready:
            raise WorkerLost(f"{lost} while it started; see what it printed above") from None
    if not worker.is_ready:
        return None
    task, worker.task = worker.task, None
    preempted = bool(lost) and worker.process.exitcode == interruption.EXIT_CODE
    return Outcome(task, result, lost, time.monotonic() - worker.started, preempted)


def _describe_end(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"the worker process ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    memory = ": out of memory?" if name == "SIGKILL" else ""
    return f"the worker process was ended by {name}{memory}"


# -- Processes -----------------------------------------------------------------------------------


def available_cores() -> tuple[int, ...]:
    """Returns the cores that this process may run on; the numbers mean nothing but on Linux."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def share_cores(cores: Sequence[int], num_workers: int) -> list[tuple[int, ...]]:
    """Deals cores out to workers; of too few cores several workers get the same one.

    >>> share_cores([0, 1, 2, 3, 4], 2), share_cores([0, 1], 3)
    ([(0, 1, 2), (3, 4)], [(0,), (1,), (0,)])
    """
    if num_workers > len(cores):
        return [(cores[index % len(cores)],) for index in range(num_workers)]
    each, more = divmod(len(cores), num_workers) if num_workers else (0, 0)
    ends = [index * each + min(index, more) for index in range(num_workers + 1)]
    return [tuple(cores[a:b]) for a, b in zip(ends, ends[1:], strict=False)]


def _start(work: Callable[[Any], Any], cores: tuple[int, ...]) -> _Worker:
    # Not fork: JAX's threads do not survive it.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work, cores))
    # Inherited, so that a Ctrl-C while the process starts does not reach it either.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    theirs.close()
    return _Worker(process, ours, cores)


def _stop(workers: Sequence[_Worker]) -> None:
    """Lets idle workers end, makes those at a task or not yet ready end, kills what is left."""
    for worker in workers:
        worker.connection.close()
        if worker.task is not None or not worker.is_ready:
            worker.process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        worker.process.kill()
        worker.process.join()


def _serve(connection: Connection, work: Callable[[Any], Any], cores: tuple[int, ...]) -> None:
    """What a worker does, from its start to its end.

    SIGTERM ends it, with a code of its own if a task is lost; the task may save first.
    """
    signal.signal(signal.SIGTERM, interruption.stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Before JAX starts its threads: it takes as many as there are cores that it may use.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    else:
        os.environ.setdefault("NPROC", str(len(cores)))
    try:
        connection.send(None)
        while True:
            connection.send(work(connection.recv()))
    except Preempted:
        sys.exit(interruption.EXIT_CODE)
    except (EOFError, BrokenPipeError):
        pass


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connections.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(1)
