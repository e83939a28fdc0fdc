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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from rich.console import Console

from experiments.shell import console as screen
from experiments.shell import exits, interruption
from experiments.shell.errors import Preempted
from experiments.storage import run_folder
from experiments.sweep import cells as cells_lib
from experiments.sweep import cluster, local
from experiments.sweep.cells import Cell, Ended, State, Status
from experiments.sweep.options import PROG, Options, parse, plan


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program; mistakes and interruptions end it with one line and a non-zero code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    console = screen.open_console()
    console.soft_wrap = True
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
    """Carries out the cells that are to be done; returns the states that cells are in then."""
    statuses = {cell: cells_lib.status(cell) for cell in cells}
    skipped = {"complete", "running"} | (set() if options.retry_failed else {"failed"})
    todo = [cell for cell, status in statuses.items() if status.state not in skipped]
    console.print(_describe_all(statuses.values()))
    if todo:
        statuses |= _carry_out(cells_lib.by_job(todo), options, console)
        console.print(_describe_all(statuses.values()))
    for cell, status in statuses.items():
        if status.state == "failed":
            log = cell.folder / "log.txt"
            console.print(f"failed: {cell.name}: {status.error} (more in {log})")
    return {status.state for status in statuses.values()}


def _carry_out(todo: Sequence[Cell], options: Options, console: Console) -> dict[Cell, Status]:
    """Carries out cells; prints a line about each that ends."""
    place = todo[0].folder.parent
    run_folder.make(place)
    statuses: dict[Cell, Status] = {}
    seconds: dict[Cell, float] = {}
    with _outcomes(todo, options) as (outcomes, at_once, how), console.status("") as spinner:
        console.print(f"{len(todo)} to do {how}; each prints to log.txt in its folder in {place}")
        left = list(todo)
        while left:
            spinner.update(f"running: {', '.join(cell.name for cell in left[:at_once])}")
            ended = next(outcomes)
            left.remove(ended.cell)
            status = statuses[ended.cell] = cells_lib.settle(ended)
            if status.state == "complete":
                seconds[ended.cell] = ended.seconds
            estimate = time_left(left, seconds, at_once)
            about = f", about {screen.duration(estimate)}" if left and estimate else ""
            console.print(
                f"{len(statuses):>{len(str(len(todo)))}}/{len(todo)}  {ended.cell.name}  "
                f"{_describe(status)}  {screen.duration(ended.seconds)}; {len(left)} left{about}"
            )
    return statuses


@contextlib.contextmanager
def _outcomes(todo: Sequence[Cell], options: Options) -> Iterator[tuple[Iterator[Ended], int, str]]:
    """Yields how the cells end, as they end; how many run at once; and by what, in words."""
    with contextlib.ExitStack() as stack:
        if options.cluster is None:
            number = min(options.workers, len(todo))
            outcomes = local.run(todo, num_workers=number)
            how = f"by {screen.plural(number, 'worker')}"
        else:
            stack.enter_context(cluster.connected(options.cluster))
            number = min(cluster.num_at_once(options.needs), len(todo))
            outcomes = cluster.run(todo, needs=options.needs, retries=options.retries)
            how = f"on the cluster, {number} at once"
        yield stack.enter_context(contextlib.closing(outcomes)), number, how


# -- What is shown -------------------------------------------------------------------------------


def show_list(cells: Sequence[Cell], console: Console) -> None:
    """Prints the cells and how far each has got."""
    statuses = [cells_lib.status(cell) for cell in cells]
    for cell, status in zip(cells, statuses, strict=True):
        accuracy = "" if status.accuracy is None else f"  {status.accuracy:.2%}"
        reason = f"  {status.error}" if status.error else ""
        console.print(f"{status.state:<11}  {cell.name}{accuracy}{reason}")
    console.print(_describe_all(statuses))


def time_left(
    left: Iterable[Cell], seconds: Mapping[Cell, float], num_workers: int
) -> float | None:
    """Estimates how long the cells that are left take, from how long those took that are done.

    Cells of the same kind are expected to take equally long, and those of a kind of which none is
    done as long as the mean. Without any that is done there is no estimate.
    """
    if not seconds:
        return None
    kinds = defaultdict(list)
    for cell, value in seconds.items():
        kinds[cell.kind].append(value)
    overall = statistics.fmean(seconds.values())
    means = {kind: statistics.fmean(values) for kind, values in kinds.items()}
    return sum(means.get(cell.kind, overall) for cell in left) / num_workers


def _describe(status: Status) -> str:
    words = {"running": "is being run by another process", "interrupted": "preempted, and saved"}
    result = f"failed: {status.error}" if status.accuracy is None else f"{status.accuracy:.2%}"
    return words.get(status.state, result)


def _describe_all(statuses: Collection[Status]) -> str:
    counts = Counter(status.state for status in statuses)
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    return f"{screen.plural(len(statuses), 'cell')}: {states}"
