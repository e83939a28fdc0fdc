"""How fast we are: each step against the same step in PyTorch, and against a matrix product.

    python -m experiments.benchmark --case sample-finite_difference --json times.json
    python -m experiments.benchmark --list

For each case, ours and PyTorch's (plain torch.nn, eager, in both of its image layouts) run in
processes of their own that take turns, so that a noisy machine disturbs all of them alike. PyTorch
takes the authors' steps, two passes for the batch statistics included; ours are what the library's
public functions do by default, in float32 on the CPU. The cases of VGG-16-BN, ResNet-50 and the
whole search take most of the time. `--case convolution` shows where one side is ahead: the three
sums of a layer, each by itself. `--case shrunk-latency` and `--case file-sizes` make tables of our
side alone: how fast shrunk networks are, and what pruned networks take on disk.

    python -m experiments.benchmark --aot v5e:2x4

asks the TPU compiler instead, on any machine, what our programs would do there: work, bytes,
memory and communication. It takes minutes for each program.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import Field
from rich.console import Console

from experiments.benchmark import (
    aot,
    cases,
    file_sizes,
    picture,
    results,
    shrunk_latency,
    timing,
)
from experiments.benchmark.child import ChildLost
from experiments.benchmark.results import Table
from experiments.benchmark.types import OURS, Case
from experiments.shell import command_line, exits
from experiments.shell.configuration import Count, File, Text, configuration
from experiments.shell.console import open_console, show_plan, show_table, track
from experiments.shell.errors import UserError
from ntksap_jax import ops

PROG = "python -m experiments.benchmark"

TABLES: dict[str, Callable[[], Table]] = {
    "shrunk-latency": shrunk_latency.table,
    "file-sizes": file_sizes.table,
}
"""Cases that make a table of our side alone."""


@configuration
class Options:
    """How fast we are."""

    case: Annotated[tuple[Text, ...], tyro.conf.arg(metavar="[NAME ...]")] = ()
    """Cases, or what their names begin with, such as sample-jvp (default: all)."""
    list: bool = False
    """Print the names of the cases and end."""
    repeats: Count = 7
    """Rounds that count, after one to warm up (the whole search takes one)."""
    batch_size: Annotated[int, Field(ge=2)] | None = None
    """Images in a step, instead of each case's own number."""
    without_torch: bool = False
    """Time our side alone."""
    json: File | None = None
    """Write all that was measured to this file, after every case."""
    markdown: File | None = None
    """Write the tables to this file."""
    picture: File | None = None
    """Draw the ratios and rates to this file, such as times.png."""
    aot: Annotated[Text | None, tyro.conf.arg(metavar="TOPOLOGY")] = None
    """Time nothing: ask the TPU compiler what programs cost on this slice, such as v5e:2x4."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, or 1 if a case failed.

    Args:
        arguments: the words after the program's name; by default those of the command line.

    Raises:
        SystemExit: nothing was run, or the program was interrupted; the codes are those of
            `experiments.shell.exits`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with exits.in_one_line():
        options = command_line.read(Options, arguments, prog=PROG, about=__doc__)
        if options.aot is not None:
            aot.check_topology(options.aot)
        known: dict[str, Any] = aot.PROGRAMS if options.aot else {**cases.CASES, **TABLES}
        chosen = cases.choose(known, options.case)
        if options.list:
            print("\n".join(chosen))
            if not options.aot and not options.case:
                print("\n".join(f"--aot TOPOLOGY --case {name}" for name in aot.PROGRAMS))
            return 0
        check(options, chosen)
        run = compile_for_tpu if options.aot else time_cases
        return run(options, chosen, open_console())


def check(options: Options, chosen: dict[str, Any]) -> None:
    """Raises a `UserError` if the options cannot lead to a result."""
    for flag in ("json", "markdown", "picture"):
        path = getattr(options, flag)
        if path is not None and not path.parent.is_dir():
            raise UserError(f"--{flag}: there is no folder {path.parent}")
    if options.aot and options.picture:
        raise UserError("--picture: nothing is timed with --aot, so there is nothing to draw")
    if options.aot and not aot.compiler_is_installed():
        raise UserError(
            "--aot: the TPU compiler is not installed: pip install -e '.[tpu-aot]' (Python 3.12)"
        )
    timed = [case for case in chosen.values() if isinstance(case, Case)]
    compared = not options.without_torch and any(case.layouts for case in timed)
    if compared and importlib.util.find_spec("torch") is None:
        raise UserError(
            "PyTorch is not installed: pip install -e '.[bench]', or time our side alone with "
            "--without-torch"
        )
    if options.picture and not (compared or any(case.has_flops for case in timed)):
        raise UserError("--picture: these cases have no ratio and no rate that could be drawn")


def compile_for_tpu(options: Options, chosen: dict[str, aot.Program], console: Console) -> int:
    """Compiles for a TPU, shows and writes; returns 0, or 1 if a program failed."""
    topology = options.aot or ""
    costs: dict[str, aot.Cost] = {}

    def compile_one(name: str, program: aot.Program) -> str:
        costs[name] = aot.ask(topology, program)
        _write(options.json, results.to_json({"topology": topology, "programs": costs}))
        return f"{name}: compiled in {costs[name].compile_seconds:.0f} s"

    status = run_all(console, chosen, compile_one, description="Compiling", unit="program")
    if costs:
        _finish(options, console, [aot.table(topology, costs)])
    return status


def time_cases(options: Options, chosen: dict[str, Any], console: Console) -> int:
    """Measures, shows and writes; returns 0, or 1 if a case failed."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    machine = f"{cores} cores, {processor()}"
    versions = {"python": platform.python_version()}
    setting = {
        "versions": versions,
        "cores": cores,
        "processor": processor(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "convolutions": ops.cpu_convolution(),
        "repeats": options.repeats,
    }
    measured: list[dict[str, Any]] = []
    summaries: list[results.Summary] = []
    tables: list[Table] = []

    def time_one(name: str, case: Any) -> str:
        line = f"{name}: done"
        if isinstance(case, Case):
            if options.batch_size and case.batch_size:
                case = dataclasses.replace(case, batch_size=options.batch_size)
            names = [OURS, *(() if options.without_torch else case.layouts)]
            sides = timing.measure(case, names, repeats=options.repeats, cores=cores)
            for side in sides.values():
                versions.update(side.ready.versions)
            said = results.summarise(case, sides)
            measured.append({"case": case, "sides": sides, "summaries": said})
            summaries.extend(said)
            line = results.describe(said[0])
        else:
            tables.append(case())
        content = {"setting": setting, "cases": measured, "tables": tables}
        _write(options.json, results.to_json(content))
        return line

    status = run_all(console, chosen, time_one, description="Timing", unit="case")
    about = []
    if summaries:
        about = [
            ("matrix product", results.peak_text(summaries)),
            ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
            ("machine", machine),
            ("convolutions", ops.cpu_convolution()),
            ("rounds", str(options.repeats)),
        ]
        if options.picture:
            figure = picture.draw(summaries, f"Time and rate of a step on {machine}")
            figure.savefig(options.picture, dpi=130)
        tables = [*results.tables(summaries), *tables]
    _finish(options, console, tables, about)
    return status


def run_all(
    console: Console,
    chosen: dict[str, Any],
    run: Callable[[str, Any], str],
    *,
    description: str,
    unit: str,
) -> int:
    """Runs one after the other, with progress; returns 0, or 1 if the process of one was lost."""
    status = 0
    with track(console, description, total=len(chosen), unit=unit) as tracker:
        for name, item in chosen.items():
            try:
                tracker.line(run(name, item))
            except ChildLost as lost:
                status = 1
                print(f"error: {name}: {lost}", file=sys.stderr)
            tracker.advance()
    return status


def _finish(
    options: Options,
    console: Console,
    tables: Sequence[Table],
    about: Sequence[tuple[str, str]] = (),
) -> None:
    console.print()
    for table in tables:
        show_table(console, table.title, table.header, table.rows)
        console.print(table.legend)
        console.print()
    if about:
        show_plan(console, "Measured with", about)
    _write(options.markdown, results.markdown(tables, [": ".join(pair) for pair in about]))


def _write(path: Path | None, text: str) -> None:
    if path:
        path.write_text(text, encoding="utf-8")


def processor() -> str:
    """Returns the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    if match := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
        return match[1].strip()
    return platform.processor() or platform.machine()
