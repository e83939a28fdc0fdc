"""A grid of runs: data set x model x criterion x density x seed, by several worker processes.

    python -m experiments.sweep digits                       a small grid, a few minutes
    python -m experiments.sweep paper-cifar10 --workers 4    the paper's figure
    python -m experiments.sweep my-grid.toml --list          a file, see experiments/sweep/grid.py
    python -m experiments.sweep short --criterion ntk_sap random --seed 0 1 2
    python -m experiments.sweep paper-cifar10 --cluster auto --gpus-per-cell 0.5    on Ray

Every cell is a run folder as `python -m experiments.cifar` makes it. The same command again goes on
where it stopped. Exit codes: see `experiments.shell.exits`; 1 also says that a cell failed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from experiments.cifar import config as config_lib
from experiments.cifar.config import Config
from experiments.processes import workers
from experiments.processes.workers import Outcome
from experiments.shell import console as screen
from experiments.shell import exits, interruption
from experiments.shell.errors import Preempted, RunFailed, UserError
from experiments.sweep import cells, cluster
from experiments.sweep.cells import State, Status
from experiments.sweep.options import PROG, Options, parse, plan


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program; mistakes and interruptions end it with one line and a non-zero code.

    Args:
        arguments: the words after the program's name; by default those of the command line.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    console = screen.open_console()
    with exits.in_one_line(PROG, arguments):
        options = parse(arguments)
        configs = plan(options)
        if options.list:
            show_list(configs, console)
            return
        with interruption.raised():
            states = run(configs, options, console)
        if "failed" in states:
            retry = [*(word for word in arguments if word != "--retry-failed"), "--retry-failed"]
            exits.stop(f"to try the failed ones again: {PROG} {shlex.join(retry)}", code=1)
        if "interrupted" in states:
            raise Preempted


# -- Running -------------------------------------------------------------------------------------


def run(configs: Sequence[Config], options: Options, console: Console) -> set[State]:
    """Carries out the cells that are to be done.

    Args:
        configs: from `plan`.
        options: of the command line.
        console: where progress and the failures go.

    Returns:
        The states that cells are in now.

    Raises:
        RunFailed: the workers cannot start.
    """
    statuses = {config: cells.status(config) for config in configs}
    skipped = {"complete", "running"} | (set() if options.retry_failed else {"failed"})
    todo = [config for config, status in statuses.items() if status.state not in skipped]
    console.print(f"{_plural(len(configs), 'cell')}: {_count(statuses.values())}", soft_wrap=True)
    if todo:
        _make_folder(configs[0].runs_dir)
        with _carriers(options, configs[0].runs_dir, len(todo), console) as carriers:
            console.print(
                f"{len(todo)} to do {carriers.describe}; what each prints goes to log.txt in the "
                f"cell's folder in {configs[0].runs_dir}",
                soft_wrap=True,
            )
            try:
                statuses |= _work(todo, carriers, console)
            except workers.WorkerLost as error:
                raise RunFailed(str(error)) from error
        console.print(
            f"{_plural(len(configs), 'cell')}: {_count(statuses.values())}", soft_wrap=True
        )
    failed = {config: status for config, status in statuses.items() if status.state == "failed"}
    for config, status in failed.items():
        console.print(
            f"failed: {config_lib.run_name(config)}: {_first_line(status.error)} "
            f"(more in {cells.folder(config)})",
            soft_wrap=True,
        )
    return {status.state for status in statuses.values()}


class _Carriers(NamedTuple):
    """Who carries out the cells: `run` of `workers` or `cluster`, and how many cells at once."""

    run: Callable[..., Generator[Outcome]]
    num_at_once: int
    describe: str


@contextlib.contextmanager
def _carriers(
    options: Options, runs_dir: Path, num_cells: int, console: Console
) -> Iterator[_Carriers]:
    if options.cluster is None:
        number = min(options.workers, num_cells)
        _share_accelerator_memory(number)
        run = functools.partial(workers.run, num_workers=number)
        yield _Carriers(run, number, f"by {_plural(number, 'worker')}")
        return

    def on_lost(config: Config, why: str) -> None:
        console.print(f"tried again: {config_lib.run_name(config)}: {why}", soft_wrap=True)

    needs = cluster.Needs(options.cpus_per_cell, options.gpus_per_cell, options.tpus_per_cell)
    with cluster.connected(options.cluster):
        cluster.check(runs_dir, needs)
        number = min(cluster.num_at_once(needs), num_cells)
        run = functools.partial(cluster.run, needs=needs, retries=options.retries, on_lost=on_lost)
        yield _Carriers(run, number, f"on the cluster, {number} at once")


def _work(todo: Sequence[Config], carriers: _Carriers, console: Console) -> dict[Config, Status]:
    """Has cells carried out; prints a line about each that ends."""
    statuses: dict[Config, Status] = {}
    seconds: dict[Config, float] = {}
    running: list[Config] = []
    spinner = console.status("starting")

    def show_running() -> None:
        spinner.update(f"running: {', '.join(map(config_lib.run_name, running))}")

    def on_start(config: Config) -> None:
        running.append(config)
        show_running()

    outcomes = carriers.run(todo, cells.carry_out, group=cells.group, on_start=on_start)
    with spinner, contextlib.closing(outcomes):
        for outcome in outcomes:
            config = outcome.task
            status = _status(outcome)
            statuses[config] = status
            if status.state == "complete":
                seconds[config] = outcome.seconds
            running.remove(config)
            show_running()
            left = [other for other in todo if other not in statuses]
            console.print(
                f"{len(statuses):>{len(str(len(todo)))}}/{len(todo)}  "
                f"{config_lib.run_name(config)}  {_describe(status)}  "
                f"{screen.duration(outcome.seconds)}"
                f"{_describe_left(left, seconds, carriers.num_at_once)}",
                soft_wrap=True,
            )
    return statuses


def _status(outcome: Outcome) -> Status:
    if outcome.preempted:
        return cells.status(outcome.task)
    return cells.fail(outcome.task, outcome.lost) if outcome.lost else outcome.result


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--runs-dir: cannot make the folder {path}: {error.strerror}") from error


def _share_accelerator_memory(num_workers: int) -> None:
    """Keeps the first worker from taking three quarters of a GPU's memory, as JAX does alone."""
    if num_workers > 1:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / num_workers:.3f}")


# -- What is shown -------------------------------------------------------------------------------


def show_list(configs: Sequence[Config], console: Console) -> None:
    """Prints the cells and how far each has got."""
    statuses = [cells.status(config) for config in configs]
    for config, status in zip(configs, statuses, strict=True):
        accuracy = "" if status.accuracy is None else f"  {status.accuracy:.2%}"
        reason = f"  {_first_line(status.error)}" if status.error else ""
        console.print(
            f"{status.state:<11}  {config_lib.run_name(config)}{accuracy}{reason}", soft_wrap=True
        )
    console.print(f"{_plural(len(configs), 'cell')}: {_count(statuses)}")


def time_left(
    left: Iterable[Config], seconds: Mapping[Config, float], num_workers: int
) -> float | None:
    """Estimates how long the cells that are left take, from those that are done.

    Args:
        left: the cells that are not done.
        seconds: how long each of those took that are. Cells of the same data set, model, training
            and criterion are expected to take equally long.
        num_workers: how many work at once.

    Returns:
        Seconds; nothing if no cell is done yet.
    """
    if not seconds:
        return None
    kinds = defaultdict(list)
    for config, value in seconds.items():
        kinds[_kind(config)].append(value)
    overall = statistics.mean(seconds.values())
    means = {kind: statistics.mean(values) for kind, values in kinds.items()}
    return sum(means.get(_kind(config), overall) for config in left) / num_workers


def _kind(config: Config) -> tuple[Any, ...]:
    return cells.group(config), config.search.criterion


def _describe_left(
    left: Sequence[Config], seconds: Mapping[Config, float], num_workers: int
) -> str:
    estimate = time_left(left, seconds, num_workers)
    if not left or estimate is None:
        return f"; {len(left)} left"
    return f"; {len(left)} left, about {screen.duration(estimate)}"


def _describe(status: Status) -> str:
    if status.state == "running":
        return "is being run by another process"
    if status.state == "interrupted":
        return "preempted, and saved"
    if status.accuracy is None:
        return f"failed: {_first_line(status.error)}"
    return f"{status.accuracy:.2%}"


def _count(statuses: Iterable[Status]) -> str:
    counts = Counter(status.state for status in statuses)
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
