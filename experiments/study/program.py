"""Is one criterion better than another? A grid of runs, compared pair by pair.

    python -m experiments.study digits                   a grid of experiments/study/grids
    python -m experiments.study my-study.toml --list     a file: what is done, and the table so far
    python -m experiments.study digits --seed 0 1        some of its cells

A study is a grid of `experiments.sweep` (see experiments/sweep/grid.py), whose flags it takes, and
which carries it out: the same command goes on where it stopped. An arm is a criterion with a label,
such as `ntk_sap vjp`; the key `baseline` of the file names the one that the others are compared
with, under the same seeds and training. Into the folder `study` beside the run folders go study.csv
(a row for each arm and density), runs.csv (a row for each run) and a picture for each set-up.
Exit codes are those of the sweep.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from experiments.report import drawing, runs, setups, tables
from experiments.report.setups import Section, density_text
from experiments.shell import console as screen
from experiments.shell import exits, interruption
from experiments.shell.configuration import check_name
from experiments.shell.errors import Preempted, UserError
from experiments.storage import run_folder
from experiments.study import paired
from experiments.study.paired import Compared
from experiments.sweep import cells as cells_lib
from experiments.sweep import grid as grid_lib
from experiments.sweep import options as options_lib
from experiments.sweep import program as sweep
from experiments.sweep.cells import Cell
from experiments.sweep.programs import CIFAR

PROG = "python -m experiments.study"

NAMED: dict[str, Path] = {
    path.stem: path for path in sorted((Path(__file__).parent / "grids").glob("*.toml"))
}
"""Name to file of the studies that come with the programs."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program; mistakes and interruptions end it with one line and a non-zero code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    console = screen.open_console()
    with exits.in_one_line(PROG, arguments):
        if not arguments or arguments[0] in ("-h", "--help"):
            print(f"usage: {PROG} GRID [--flag value ...]\n\n{__doc__}")
            raise SystemExit(0 if arguments else 2)
        path = NAMED.get(arguments[0], Path(arguments[0]))
        if path.suffix != ".toml":
            known = ", ".join(NAMED)
            raise UserError(f"expected a grid file (.toml) or one of {known}; got {arguments[0]!r}")
        grid = grid_lib.read(path)
        if grid.program is not CIFAR:
            raise UserError(f"{path}: a study is of {CIFAR.module}, not of {grid.program.module}")
        arms = dict.fromkeys(map(paired.name_of, grid_lib.cells(grid, name=str(path))))
        baseline = check_name(f"baseline in {path}", grid.baseline, arms)
        options, values = options_lib.parse([str(path), *arguments[1:]])
        cells = options_lib.plan(options, values)
        say_how_long(cells, options.workers, console)
        if options.list:
            sweep.show_list(cells, console)
            evaluate(cells, baseline, console)
            return
        with interruption.raised():
            states = sweep.run(cells, options, console)
        evaluate(cells, baseline, console)
        if "interrupted" in states:
            raise Preempted
        if "failed" in states:
            exits.stop("not all cells are complete; --retry-failed tries them again", code=1)


def say_how_long(cells: Sequence[Cell], num_workers: int, console: Console) -> None:
    """Estimates the time that is left from what is complete; without that, after the first cell."""
    complete = [cell for cell in cells if cells_lib.status(cell).state == "complete"]
    seconds = {}
    for cell in complete:
        summary = run_folder.read_summary(cell.folder)
        seconds[cell] = summary["search_seconds"] + summary["training_seconds"]
    left = [cell for cell in cells if cell not in seconds]
    estimate = sweep.time_left(left, seconds, num_workers)
    known = f"about {screen.duration(estimate)}" if estimate else "how long is told as cells end"
    console.print(f"{len(left)} of {len(cells)} cells left{f': {known}' if left else ''}")


def evaluate(cells: Sequence[Cell], baseline: str, console: Console) -> None:
    """Compares what is complete with the baseline, prints a table, and writes the files."""
    complete = [cell for cell in cells if run_folder.is_complete(cell.folder)]
    if not complete:
        return
    out = complete[0].folder.parent / "study"
    run_folder.make(out)
    sections = setups.group(runs.find([cell.folder for cell in complete]).runs)
    rows: list[dict[str, Any]] = []
    for section in sections:
        if not (compared := paired.compare(section, baseline)):
            console.print(f"{section.title}: no run of {baseline} is complete yet")
            continue
        show(section, baseline, compared, console)
        run_folder.write_picture(out / f"setup{section.number}.png", draw(baseline, compared))
        rows += [{"setup": section.title, **each._asdict()} for each in compared]
    if rows:
        run_folder.write_table(out / "study.csv", rows)
    run_folder.write_table(out / "runs.csv", tables.run_rows(sections))
    console.print(f"tables and pictures are in {out}")


def show(section: Section, baseline: str, compared: Sequence[Compared], console: Console) -> None:
    """Prints the table of a set-up: a row for each arm, best first at each density."""
    dense = [
        100 * run.summary.last_test_accuracy
        for line in section.dense
        for cell in line.cells
        for run in cell.runs
    ]
    rows = [
        [
            each.arm,
            _density(each),
            f"{each.accuracy:.2f}",
            f"{each.difference:+.2f}",
            "" if each.low is None else f"{each.low:+.2f} to {each.high:+.2f}",
            str(each.seeds),
            screen.duration(each.search_seconds),
        ]
        for each in sorted(compared, key=lambda each: (-(each.density or 0), -each.accuracy))
    ]
    about = f"; dense {statistics.fmean(dense):.2f}" if dense else ""
    screen.show_table(
        console,
        f"{section.title}{about}: accuracy in percent, and beside that of {baseline}",
        ["arm", "density", "accuracy", "difference", "95 %", "seeds", "search"],
        rows,
    )


def draw(baseline: str, compared: Sequence[Compared]) -> Figure:
    """Draws the differences with their intervals: a panel for each density, best arm on top."""
    panels: dict[str, list[Compared]] = {}
    for each in sorted(compared, key=lambda each: each.difference):
        panels.setdefault(_density(each), []).append(each)
    order = sorted(panels, key=lambda name: -(panels[name][0].density or 0))
    figure, axes_of = drawing.stack([0.9 + 0.24 * len(panels[name]) for name in order])
    for axes, name in zip(axes_of, order, strict=True):
        for row, each in enumerate(panels[name]):
            low, high = each.low, each.high
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], color=drawing.GREY, linewidth=1.6)
            axes.plot([each.difference], [row], "o", color=drawing.INK, markersize=5)
        axes.axvline(0, color=drawing.GREY, linewidth=0.8)
        axes.set_yticks(range(len(panels[name])), [each.arm for each in panels[name]])
        axes.set_title(f"density {name}" if name != _ALL else name, fontsize=10, loc="left")
    axes_of[-1].set_xlabel(f"percentage points above {baseline}, with 95 % bootstrap intervals")
    return figure


_ALL = "all densities"


def _density(each: Compared) -> str:
    return _ALL if each.density is None else density_text(each.density)
