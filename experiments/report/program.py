"""One report about many runs: accuracy against density, and what explains it.

    python -m experiments.report runs
    python -m experiments.report runs/table runs/more --out report

Reads the complete run folders in and below those named, of experiments.cifar, experiments.sweep and
experiments.tpp. Writes into --out: report.html, which holds all that is needed to read it; its
pictures as SVG and PNG; table.md; table.csv (a row for each criterion and density), runs.csv (a row
for each run) and filters.csv (a row for each run of experiments.tpp).
Runs that differ in data, network or training are never mixed: each set-up has its own section.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jinja2
import tyro

from experiments.report import (
    comparison,
    filters,
    gallery,
    numbers,
    published,
    runs,
    setups,
    spectra,
    tables,
)
from experiments.report.runs import Found, Session
from experiments.report.setups import Section
from experiments.shell import command_line, exits
from experiments.shell.configuration import Folder, configuration
from experiments.shell.errors import UserError
from experiments.storage import files, run_folder

PROG = "python -m experiments.report"

TEMPLATES = Path(__file__).with_name("templates")


@configuration
class Options:
    """One report about many runs."""

    runs: Annotated[
        tuple[Folder, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR [DIR ...]")
    ]
    """Folders that hold run folders, at any depth."""
    out: Folder | None = None
    """Where the report goes (default: report in the first of the folders)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, or 1 if damaged folders were left out.

    Raises:
        SystemExit: there is no report, or the program was interrupted; the codes are those of
            `experiments.shell.exits`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with exits.in_one_line():
        options = command_line.read(Options, arguments, prog=PROG, about=__doc__ or "")
        if not options.runs:
            raise UserError(f"name a folder that holds run folders. For example: {PROG} runs")
        found = runs.find(options.runs)
        for folder, why in found.damaged:
            print(f"left out: {folder} is damaged: {why}", file=sys.stderr)
        for folder in found.incomplete:
            print(f"left out: {folder} is not complete", file=sys.stderr)
        out = options.out or options.runs[0] / "report"
        write(found, out, command=f"{PROG} {shlex.join(arguments)}")
        print(f"{len(found.complete)} runs; the report is {out / 'report.html'}")
        return 1 if found.damaged else 0


def write(found: Found, out: Path, *, command: str) -> None:
    """Writes the report into a folder, which is made if need be; `command` asked for it.

    Raises:
        UserError: no complete run, two runs of the same configuration, or a folder that cannot be
            made.
    """
    if not found.complete:
        left_out = len(found.incomplete) + len(found.damaged)
        raise UserError(f"no complete run among {left_out} run folder{'s' * (left_out != 1)}")
    sections = setups.group(found.runs)
    networks = filters.group(found.filter_runs)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot make the folder {out}: {error.strerror}") from error

    chapters = [_chapter(section) for section in sections]
    filter_chapters = [
        {
            "network": network,
            "table": filters.table(network),
            "pictures": list(gallery.draw_network(network)),
        }
        for network in networks
    ]
    for chapter in chapters + filter_chapters:
        for picture in chapter["pictures"]:
            for ending, drawn in picture.files.items():
                with files.aside(out / f"{picture.name}.{ending}") as path:
                    path.write_bytes(drawn)

    sessions = [session for run in found.complete for session in run.sessions]
    content = {
        "found": found,
        "chapters": chapters,
        "filter_chapters": filter_chapters,
        "differing": setups.differing(sections),
        "command": command,
        "commands": list(dict.fromkeys(session.command for session in sessions)),
        "versions": Counter(map(_versions, sessions)),
        "digitising_error": published.DIGITISING_ERROR,
    }
    for name in ("report.html", "table.md"):
        files.write_text(out / name, _fill_in(name, content))
    rows = {
        "table.csv": tables.cell_rows(sections),
        "runs.csv": tables.run_rows(sections),
        "filters.csv": filters.rows(found.filter_runs),
    }
    for name, table in rows.items():
        if table:
            run_folder.write_table(out / name, table)


def _chapter(section: Section) -> dict[str, Any]:
    """Computes and draws all that the templates say of a section."""
    comparisons = comparison.compare(section)
    compared = {
        setups.density_text(density): spectra.table(spectra.measured(section, density))
        for density in section.densities
    }
    return {
        "section": section,
        "published": setups.partition(comparisons, lambda paper: paper.differences),
        "search_differences": comparison.search_differences(section) if comparisons else [],
        "accuracies": tables.accuracies(section, comparison.same_set_up(comparisons)),
        "verdicts": numbers.verdicts(section),
        "kept": tables.kept(section),
        "spectra": {density: table for density, table in compared.items() if table is not None},
        "pictures": list(gallery.draw(section, comparisons)),
    }


def _fill_in(name: str, content: dict[str, Any]) -> str:
    """Fills in a template. What run folders say is escaped in HTML, and plain in Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        # Not by the name of the template: the sentences, in a file of their own, go into both.
        autoescape=name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(content)


def _versions(session: Session) -> str:
    """Says with which versions and devices a run was made."""
    packages = ", ".join(f"{name} {version}" for name, version in session.packages.items())
    return f"Python {session.python}, {packages}; {', '.join(session.devices)}"
