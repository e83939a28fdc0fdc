"""One page about many runs: accuracy against density, and all that explains it.

    python -m experiments.report runs
    python -m experiments.report runs/table runs/more --out report

Reads the complete run folders in and below those named, and writes into `--out`: report.html (one
file, nothing else is needed to read it), its pictures as PNG, table.md, table.csv (a row a
criterion and density) and runs.csv (a row a run). Runs that differ in data, network or training
are never mixed: each set-up has a section of its own.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.report import comparison, gallery, page, runs, setups, tables, text
from experiments.report.runs import Found
from experiments.shell.command_line import one_line_errors
from experiments.shell.errors import UserError
from experiments.storage import files

PROG = "python -m experiments.report"


@dataclass(frozen=True)
class Options:
    """One page about many runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR [DIR ...]")]
    """Folders that hold run folders, at any depth."""
    out: Path | None = None
    """Where the report goes (default: report in the first of the folders)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 1 if damaged folders were left out, 2 if there is no report.

    Args:
        arguments: the words after the program's name; by default those of the command line.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with one_line_errors():
            options = tyro.cli(Options, prog=PROG, args=arguments, description=__doc__)
        if not options.runs:
            raise UserError(f"name a folder that holds run folders. For example: {PROG} runs")
        found = runs.find(options.runs)
        for folder, why in found.damaged:
            print(f"left out: {folder} is damaged: {why}", file=sys.stderr)
        for folder in found.incomplete:
            print(f"left out: {folder} is not complete", file=sys.stderr)
        out = options.out or options.runs[0] / "report"
        write(found, out, command=f"{PROG} {shlex.join(arguments)}")
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{len(found.runs)} runs; the report is {out / 'report.html'}")
    return 1 if found.damaged else 0


def write(found: Found, out: Path, *, command: str) -> None:
    """Writes the report.

    Args:
        found: what was read.
        out: the folder for it; made if need be.
        command: how the report was asked for, for its last section.

    Raises:
        UserError: no complete run, two runs of the same configuration, or a folder that cannot be
            made.
    """
    if not found.runs:
        left_out = len(found.incomplete) + len(found.damaged)
        raise UserError(f"no complete run among {left_out} run folder{'s' * (left_out != 1)}")
    sections = setups.group(found.runs)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot make the folder {out}: {error.strerror}") from error

    blocks = list(text.introduction(found, sections))
    markdown = []
    for section in sections:
        comparisons = comparison.compare(section)
        pictures = list(gallery.draw(section, comparisons))
        for picture in pictures:
            with files.aside(out / f"{picture.name}.png") as path:
                path.write_bytes(picture.light)
        blocks += text.section(section, sections, comparisons, pictures)
        markdown.append(text.markdown(section, sections, comparisons))
    blocks += text.how_it_was_made(found, command)

    files.write_text(out / "report.html", page.page(text.TITLE, blocks))
    files.write_text(out / "table.md", "\n".join(markdown))
    files.write_text(out / "table.csv", tables.cells_csv(sections))
    files.write_text(out / "runs.csv", tables.runs_csv(sections))
