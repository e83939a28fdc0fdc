"""Public models of other packages: pruned, trained and shrunk, with a table of what works.

    python -m experiments.zoo --output table.md
    python -m experiments.zoo --only haiku-mlp jaxkan

Every model is made from its package's own classes, small by their own arguments, and no weights are
downloaded. NTK-SAP, magnitude and SNIP prune it to a tenth in three rounds, 20 steps train it under
the mask of NTK-SAP, and it is shrunk to half of its FLOPs. A step that fails is a cell of the
table. The code is 1 if one fails that should work.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import tyro
from rich.console import Console

from experiments.shell import command_line, exits
from experiments.shell.configuration import File, Text, check_name, configuration
from experiments.shell.console import open_console, show_table, track
from experiments.shell.errors import UserError
from experiments.zoo.models import MODELS, Model, lines_of_glue
from experiments.zoo.steps import Outcome, take_all

PROG = "python -m experiments.zoo"
STEPS = ("load", "NTK-SAP", "magnitude", "SNIP", "train", "shrink")
HEADER = (
    *("model", "family", "glue", "weights", "NTK-SAP", "magnitude", "SNIP"),
    *("loss", "FLOPs left", "seconds"),
)


@configuration
class Options:
    """What works with models of other packages."""

    only: Annotated[tuple[Text, ...], tyro.conf.arg(metavar="[NAME ...]")] = ()
    """Models (default: all)."""
    list: bool = False
    """Print the names of the models and end."""
    output: File | None = None
    """Write the table to this file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, or 1 if a step failed that should work.

    Args:
        arguments: the words after the program's name; by default those of the command line.

    Raises:
        SystemExit: nothing was run, or the program was interrupted; the codes are those of
            `experiments.shell.exits`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with exits.in_one_line():
        options = command_line.read(Options, arguments, prog=PROG, about=__doc__)
        names = [check_name("--only", name, MODELS) for name in options.only] or list(MODELS)
        if options.list:
            print("\n".join(names))
            return 0
        check(options, names)
        return run(options, {name: MODELS[name] for name in names}, open_console())


def check(options: Options, names: Sequence[str]) -> None:
    """Raises a `UserError` if a package is missing, or the output has no folder."""
    if options.output is not None and not options.output.parent.is_dir():
        raise UserError(f"--output: there is no folder {options.output.parent}")
    packages = sorted({MODELS[name].package for name in names})
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"{', '.join(missing)}: not installed: pip install -e '.[zoo]'")


def run(options: Options, chosen: Mapping[str, Model], console: Console) -> int:
    """Takes all steps of all models, shows and writes; returns 0, or 1 if one failed."""
    rows, refusals, failed = [], [], []
    with track(console, "Models", total=len(chosen), unit="model") as tracker:
        for name, model in chosen.items():
            outcomes = take_all(model.make)
            rows.append(row(name, model, outcomes))
            tracker.line(" | ".join(rows[-1]))
            for step, outcome in outcomes.items():
                if outcome.refused:
                    refusals.append(f"**{name}**, {step}: {outcome.refused}")
                    if step not in model.refuses:
                        failed.append(f"{name}, {step}: {outcome.refused}")
            if options.output is not None:
                options.output.write_text(markdown(rows, refusals), encoding="utf-8")
            tracker.advance()
    show_table(console, "The zoo", HEADER, rows)
    for line in refusals:
        console.print(f"- {line}", soft_wrap=True, markup=False)
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    return 1 if failed else 0


def row(name: str, model: Model, outcomes: Mapping[str, Outcome]) -> tuple[str, ...]:
    """Makes the row of a model."""
    cells = []
    for step in STEPS:
        outcome = outcomes.get(step)
        cells.append("–" if outcome is None else "refused" if outcome.refused else outcome.said)
    seconds = sum(outcome.seconds for outcome in outcomes.values())
    return (name, model.family, str(lines_of_glue(model.make)), *cells, f"{seconds:.0f}")


def markdown(rows: Sequence[Sequence[str]], refusals: Sequence[str]) -> str:
    """Returns the table and what was refused, as Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (HEADER, *rows)]
    lines.insert(1, "|---|---|" + "---:|" * (len(HEADER) - 2))
    return "\n".join([*lines, "", *(f"- {line}" for line in refusals), ""])
