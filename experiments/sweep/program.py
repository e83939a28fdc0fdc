"""A grid of runs: data set x model x criterion x density x seed, several at once.

    python -m experiments.sweep digits                       a small grid, a few minutes
    python -m experiments.sweep paper-cifar10 --workers 4    the paper's figure
    python -m experiments.sweep my-grid.toml --list          a file, see experiments/sweep/grid.py
    python -m experiments.sweep short --criterion ntk_sap random --seed 0 1 2
    python -m experiments.sweep mlp-linear-short --method tpp l1    of experiments.tpp
    python -m experiments.sweep paper-cifar10 --cluster auto --gpus-per-cell 0.5    on Ray

Every cell is carried out by its own command, `python -m experiments.cifar ... --resume`: log.txt in
its run folder begins with it. The same sweep again goes on where it stopped. Exit codes: see
`experiments.shell.exits`; 1 also says that a cell failed.
"""

from __future__ import annotations

import contextlib
import shlex
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from experiments.shell import console as screen
from experiments.shell import exits, interruption
from experiments.shell.errors import Preempted, UserError
from experiments.sweep import cells as cells_lib
from experiments.sweep import cluster, local
from experiments.sweep.cells import Cell, Ended, State, Status
from experiments.sweep.options import PROG, Options, parse, plan


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program; mistakes and interruptions end it with one line and a non-zero code.

    Args:
        arguments: the words after the program's name; by default those of the command line.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    console = screen.open_console()
    with exits.in_one_line(PROG, arguments):
        options, values = parse(arguments)
        cells = plan(options, values)
        if options.list:
            show_list(cells, console)
            return
        with interruption.raised():
            states = run(cells, options, console)
        if "failed" in states:
            retry = [*(word for word in arguments if word != "--retry-failed"), "--retry-failed"]
            exits.stop(f"to try the failed ones again: {PROG} {shlex.join(retry)}", code=1)
        if "interrupted" in states:
            raise Preempted


# -- Running -------------------------------------------------------------------------------------


def run(cells: Sequence[Cell], options: Options, console: Console) -> set[State]:
    """Carries out the cells that are to be done.

    Args:
        cells: from `plan`.
        options: of the command line.
        console: where progress and the failures go.

    Returns:
        The states that cells are in now.
    """
    statuses = {cell: cells_lib.status(cell) for cell in cells}
    skipped = {"complete", "running"} | (set() if options.retry_failed else {"failed"})
    todo = [cell for cell, status in statuses.items() if status.state not in skipped]
    console.print(_describe_all(statuses.values()), soft_wrap=True)
    if todo:
        statuses |= _carry_out(todo, options, console)
        console.print(_describe_all(statuses.values()), soft_wrap=True)
    for cell, status in statuses.items():
        if status.state == "failed":
            console.print(
                f"failed: {cell.name}: {status.error} (more in {cell.folder / 'log.txt'})",
                soft_wrap=True,
            )
    return {status.state for status in statuses.values()}


def _carry_out(todo: Sequence[Cell], options: Options, console: Console) -> dict[Cell, Status]:
    """Carries out cells; prints a line about each that ends."""
    runs_dir = todo[0].folder.parent
    _make_folder(runs_dir)
    statuses: dict[Cell, Status] = {}
    seconds: dict[Cell, float] = {}
    running: list[str] = []
    spinner = console.status("running")

    def on_start(cell: Cell) -> None:
        running.append(cell.name)
        spinner.update(f"running: {', '.join(running)}")

    with _outcomes(todo, options, on_start) as (outcomes, at_once, how):
        console.print(
            f"{len(todo)} to do {how}; what each prints goes to log.txt in its folder in "
            f"{runs_dir}",
            soft_wrap=True,
        )
        with spinner:
            for ended in outcomes:
                cell = ended.cell
                status = statuses[cell] = cells_lib.settle(ended)
                if status.state == "complete":
                    seconds[cell] = ended.seconds
                if cell.name in running:
                    running.remove(cell.name)
                left = [other for other in todo if other not in statuses]
                console.print(
                    f"{len(statuses):>{len(str(len(todo)))}}/{len(todo)}  {cell.name}  "
                    f"{_describe(status)}  {screen.duration(ended.seconds)}"
                    f"{_describe_left(left, seconds, at_once)}",
                    soft_wrap=True,
                )
    return statuses


@contextlib.contextmanager
def _outcomes(
    todo: Sequence[Cell], options: Options, on_start: Callable[[Cell], None]
) -> Iterator[tuple[Iterator[Ended], int, str]]:
    """Yields how the cells end, as they end; how many run at once; and by what, in words."""
    if options.cluster is None:
        number = min(options.workers, len(todo))
        outcomes = local.run(todo, num_workers=number, on_start=on_start)
        with contextlib.closing(outcomes):
            yield outcomes, number, f"by {_plural(number, 'worker')}"
    else:
        needs = cluster.Needs(options.cpus_per_cell, options.gpus_per_cell, options.tpus_per_cell)
        with cluster.connected(options.cluster):
            number = min(cluster.num_at_once(needs), len(todo))
            outcomes = cluster.run(todo, needs=needs, retries=options.retries)
            with contextlib.closing(outcomes):
                yield outcomes, number, f"on the cluster, {number} at once"


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--runs-dir: cannot make the folder {path}: {error.strerror}") from error


# -- What is shown -------------------------------------------------------------------------------


def show_list(cells: Sequence[Cell], console: Console) -> None:
    """Prints the cells and how far each has got."""
    statuses = [cells_lib.status(cell) for cell in cells]
    for cell, status in zip(cells, statuses, strict=True):
        accuracy = "" if status.accuracy is None else f"  {status.accuracy:.2%}"
        reason = f"  {status.error}" if status.error else ""
        console.print(f"{status.state:<11}  {cell.name}{accuracy}{reason}", soft_wrap=True)
    console.print(_describe_all(statuses))


def time_left(
    left: Iterable[Cell], seconds: Mapping[Cell, float], num_workers: int
) -> float | None:
    """Estimates how long the cells that are left take, from those that are done.

    Args:
        left: the cells that are not done.
        seconds: how long each of those took that are. Cells of the same kind are expected to take
            equally long.
        num_workers: how many work at once.

    Returns:
        Seconds; nothing if no cell is done yet.
    """
    if not seconds:
        return None
    kinds = defaultdict(list)
    for cell, value in seconds.items():
        kinds[cell.kind].append(value)
    overall = statistics.mean(seconds.values())
    means = {kind: statistics.mean(values) for kind, values in kinds.items()}
    return sum(means.get(cell.kind, overall) for cell in left) / num_workers


def _describe_left(left: Sequence[Cell], seconds: Mapping[Cell, float], num_workers: int) -> str:
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
        return f"failed: {status.error}"
    return f"{status.accuracy:.2%}"


def _describe_all(statuses: Collection[Status]) -> str:
    counts = Counter(status.state for status in statuses)
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    return f"{_plural(len(statuses), 'cell')}: {states}"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
