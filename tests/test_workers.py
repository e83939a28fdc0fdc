"""Worker processes: every task once, whatever happens to the workers."""

import contextlib
import os
import signal
import time

import pytest

from experiments.processes import workers

CORES = workers.available_cores()


def work(task):
    """What the workers do in these tests: they import this module and call it by name."""
    kind, number = task
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "exits":
        os._exit(3)
    if kind == "slow":
        time.sleep(60)
    return number, os.getpid(), sorted(workers.available_cores())


def run(tasks, **options):
    with contextlib.closing(workers.run(tasks, work, **options)) as outcomes:
        return list(outcomes)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_every_task_is_done_once_by_its_group_in_one_process_each_with_its_cores():
    tasks = [(group, number) for number in range(6) for group in "ab"]
    started = []
    outcomes = run(
        tasks, num_workers=2, group=lambda task: task[0], on_start=lambda task: started.append(task)
    )
    assert sorted(outcome.task for outcome in outcomes) == sorted(started) == sorted(tasks)
    assert [outcome.lost for outcome in outcomes] == [""] * 12
    assert [outcome.result[0] for outcome in outcomes] == [outcome.task[1] for outcome in outcomes]
    assert all(outcome.seconds >= 0 for outcome in outcomes)
    # Within a group the order is kept.
    for group in "ab":
        assert [task[1] for task in started if task[0] == group] == list(range(6))
    # A worker goes over to the other group only when its own is done.
    by_worker = {}
    for outcome in outcomes:
        by_worker.setdefault(outcome.result[1], []).append(outcome.task[0])
    for groups in by_worker.values():
        assert sum(a != b for a, b in zip(groups, groups[1:], strict=False)) <= 1
    cores = {tuple(outcome.result[2]) for outcome in outcomes}
    if hasattr(os, "sched_setaffinity"):
        assert cores <= set(workers.share_cores(CORES, 2))
    assert not any(map(is_alive, by_worker))


def test_a_worker_that_is_lost_costs_only_its_task():
    tasks = [("ok", 0), ("killed", 1), ("ok", 2), ("exits", 3), ("ok", 4)]
    outcomes = {outcome.task: outcome for outcome in run(tasks, num_workers=1)}
    assert list(outcomes) == tasks
    assert outcomes["killed", 1].lost == "the worker process was ended by SIGKILL: out of memory?"
    assert outcomes["exits", 3].lost == "the worker process ended with exit code 3"
    for task in tasks:
        assert (outcomes[task].result is None) == bool(outcomes[task].lost)
    pids = [outcomes[task].result[1] for task in tasks if task[0] == "ok"]
    assert len(set(pids)) == 3


def test_closing_the_iterator_stops_workers_in_the_middle_of_a_task(monkeypatch):
    pids = []
    start = workers._start

    def recording(*args):
        worker = start(*args)
        pids.append(worker.process.pid)
        return worker

    monkeypatch.setattr(workers, "_start", recording)
    with contextlib.closing(workers.run([("slow", 0), ("ok", 1)], work, num_workers=2)) as outcomes:
        assert next(outcomes).task == ("ok", 1)
        assert any(map(is_alive, pids))
    assert len(pids) == 2
    assert not any(map(is_alive, pids))


def fail_to_import():
    os._exit(7)


class CannotBeLoaded:
    """Stands for a worker whose imports fail."""

    def __reduce__(self):
        return fail_to_import, ()


def test_workers_that_cannot_start_are_not_started_again_and_again():
    with pytest.raises(workers.WorkerLost, match="exit code 7 while it started"):
        list(workers.run([1, 2, 3], CannotBeLoaded(), num_workers=1))


@pytest.mark.parametrize(
    ("num_cores", "num_workers", "shares"),
    [
        (4, 1, [(0, 1, 2, 3)]),
        (4, 2, [(0, 1), (2, 3)]),
        (5, 3, [(0, 1), (2, 3), (4,)]),
        (2, 5, [(0,), (1,), (0,), (1,), (0,)]),
    ],
)
def test_cores_are_shared_out(num_cores, num_workers, shares):
    assert workers.share_cores(range(num_cores), num_workers) == shares
