"""How fast we are: each step against the same step in PyTorch, and against a matrix product.

    python -m experiments.benchmark --case sample-finite_difference --json times.json
    python -m experiments.benchmark --list

For each case, ours and PyTorch's (plain torch.nn, eager, in both of its image layouts) run in
processes of their own that take turns, so that a noisy machine disturbs all of them alike. PyTorch
takes the authors' steps, two passes for the batch statistics included; ours are what the library's
public functions do by default, in float32 on the CPU. The cases of VGG-16-BN, ResNet-50 and the
whole search take most of the time. `--case convolution` shows where one side is ahead: the three
sums of a layer, each by itself.

    python -m experiments.benchmark --aot v5e:2x4

asks the TPU compiler instead, on any machine, what our programs would do there: work, bytes,
memory and communication. It takes minutes a program.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from experiments.benchmark import (
    aot,
    cases,
    children,
    measure,
    picture,
    results,
    summaries,
    tpu_programs,
)
from experiments.benchmark.types import OURS, Case, Measurement
from experiments.processes import workers
from experiments.shell import command_line, exits
from experiments.shell.console import open_console, show_plan, show_table, track
from experiments.shell.errors import UserError

PROG = "python -m experiments.benchmark"


@dataclass(frozen=True)
class Options:
    """How fast we are."""

    case: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME ...]")] = ()
    """Cases, or what their names begin with, such as sample-jvp (default: all)."""
    list: bool = False
    """Print the names of the cases and end."""
    repeats: int = 7
    """Rounds that count, after one to warm up (the whole search takes one)."""
    batch_size: int | None = None
    """Images a step, instead of each case's own number."""
    without_torch: bool = False
    """Time our side alone."""
    json: Path | None = None
    """Write all that was measured to this file, after every case."""
    markdown: Path | None = None
    """Write the table to this file."""
    picture: Path | None = None
    """Draw the ratios and rates to this file, such as times.png."""
    aot: Annotated[str | None, tyro.conf.arg(metavar="TOPOLOGY")] = None
    """Time nothing: ask the TPU compiler what programs cost on this slice, such as v5e:2x4."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, or 1 if a case failed.

    Args:
        arguments: the words after the program's name; by default those of the command line.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with exits.in_one_line(PROG, arguments):
        options = command_line.read(Options, arguments, prog=PROG, about=__doc__)
        if options.aot is not None:
            return compile_for_tpu(options, options.aot, open_console())
        chosen = cases.choose(cases.CASES, options.case)
        if options.list:
            print("\n".join(case.name for case in chosen))
            return 0
        check(options, chosen)
        return run(options, chosen, open_console())


def check(options: Options, chosen: Sequence[Case]) -> None:
    """Raises a `UserError` if the options cannot lead to a result."""
    if options.repeats < 1:
        raise UserError(f"--repeats: got {options.repeats}, expected at least 1")
    if options.batch_size is not None and options.batch_size < 2:
        raise UserError(f"--batch-size: got {options.batch_size}, expected at least 2")
    check_folders(options)
    compared = not options.without_torch and any(case.layouts for case in chosen)
    if compared and importlib.util.find_spec("torch") is None:
        raise UserError(
            "PyTorch is not installed: pip install -e '.[bench]', or time our side alone with "
            "--without-torch"
        )
    if options.picture and not (compared or any(case.has_flops for case in chosen)):
        raise UserError("--picture: these cases have no ratio and no rate that could be drawn")


def check_folders(options: Options) -> None:
    """Raises a `UserError` if a file would be written where no folder is."""
    for flag in ("json", "markdown", "picture"):
        path = getattr(options, flag)
        if path is not None and not path.parent.is_dir():
            raise UserError(f"--{flag}: there is no folder {path.parent}")


def compile_for_tpu(options: Options, topology: str, console: Console) -> int:
    """Compiles for a TPU, shows and writes; returns 0, or 1 if a program failed."""
    tpu_programs.check_topology(topology)
    chosen = cases.choose(tpu_programs.PROGRAMS, options.case)
    if options.list:
        print("\n".join(program.name for program in chosen))
        return 0
    check_folders(options)
    if options.picture:
        raise UserError("--picture: nothing is timed with --aot, so there is nothing to draw")
    if not aot.compiler_is_installed():
        raise UserError(
            "--aot: the TPU compiler is not installed: pip install -e '.[tpu-aot]' (Python 3.12)"
        )
    costs: dict[str, tpu_programs.Cost] = {}
    with track(console, "Compiling", total=len(chosen), unit="program") as tracker:
        for program in chosen:
            try:
                costs[program.name] = aot.ask(topology, program)
            except aot.CompilerFailed as failure:
                print(f"error: {program.name}: {failure}", file=sys.stderr)
            else:
                seconds = costs[program.name].compile_seconds
                tracker.line(f"{program.name}: compiled in {seconds:.0f} s")
                if options.json:
                    options.json.write_text(aot.to_json(topology, costs))
                if options.markdown:
                    text = results.table_as_markdown(aot.table(topology, costs))
                    options.markdown.write_text(text, encoding="utf-8")
            tracker.advance()
    if costs:
        table = aot.table(topology, costs)
        show_table(console, table.title, table.header, table.rows)
        console.print(table.legend)
    return 0 if len(costs) == len(chosen) else 1


def run(options: Options, chosen: Sequence[Case], console: Console) -> int:
    """Measures, shows and writes; returns 0, or 1 if a case failed."""
    cores = len(workers.available_cores())
    versions = {"python": platform.python_version()}
    setting: dict[str, Any] = {
        "versions": versions,
        "cores": cores,
        "processor": processor(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "repeats": options.repeats,
    }
    measured: list[Measurement] = []
    summarised: list[summaries.Summary] = []
    failed = 0
    with track(console, "Timing", total=len(chosen), unit="case") as tracker:
        for case in chosen:
            case = cases.with_batch_size(case, options.batch_size)
            sides = [OURS, *(() if options.without_torch else case.layouts)]
            try:
                measurement = measure.measure(
                    case,
                    sides,
                    repeats=options.repeats,
                    cores=cores,
                    on_version=versions.__setitem__,
                )
            except children.ChildLost as lost:
                print(f"error: {case.name}: {lost}", file=sys.stderr)
                failed += 1
            else:
                measured.append(measurement)
                summarised.append(summaries.summarise(measurement))
                tracker.line(line(summarised[-1]))
                if options.json:
                    options.json.write_text(results.to_json(measured, summarised, setting))
            tracker.advance()

    if not summarised:
        return 1
    about = describe(setting)
    console.print()
    for table in results.tables(summarised):
        show_table(console, table.title, table.header, table.rows)
        console.print(table.legend)
        console.print()
    for sentence in results.notes(summarised):
        console.print(sentence)
    console.print()
    show_plan(console, "Measured with", about)
    if options.markdown:
        options.markdown.write_text(results.markdown(summarised, about), encoding="utf-8")
    if options.picture:
        title = f"Time and rate of a step on {cores} cores, {setting['processor']}"
        picture.draw(summarised, title).savefig(options.picture, dpi=130)
    return 1 if failed else 0


def line(summary: summaries.Summary) -> str:
    """Returns what is said of a case as soon as it is done."""
    ours = f"{results.number(1e3 * summary.ours.seconds.median)} ms"
    ratio = "" if summary.ratio is None else f", ours / PyTorch {results.interval(summary.ratio)}"
    return f"{summary.name}: {ours}{ratio}"


def describe(setting: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns what the times depend on, as names and values."""
    versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    machine = f"{setting['cores']} cores, {setting['processor']}"
    return [("versions", versions), ("machine", machine), ("rounds", str(setting["repeats"]))]


def processor() -> str:
    """Returns the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    if match := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
        return match[1].strip()
    return platform.processor() or platform.machine()
