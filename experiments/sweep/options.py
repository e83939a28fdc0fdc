"""The command line of `python -m experiments.sweep`: from its words to the cells of the grid."""

from __future__ import annotations

import dataclasses
import difflib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.shell import command_line, configuration
from experiments.shell.configuration import Count, CountOrZero, Folder, Text, to_dict
from experiments.shell.errors import UserError
from experiments.storage import run_folder
from experiments.sweep import grid as grid_lib
from experiments.sweep import programs
from experiments.sweep.cells import Cell
from experiments.sweep.cluster import Needs
from experiments.sweep.grid import Grid, Table
from experiments.sweep.programs import PRESETS

PROG = "python -m experiments.sweep"
ABOUT = f"""Carries out a grid of runs. Further flags are those of the program that the grid is of,
with one or several values. Of a preset: run every combination of these values. Of a file or named
grid: run only the cells that have them. For example: {PROG} short --criterion ntk_sap random --seed
0 1 2"""


@configuration.configuration
class Options:
    """What the command line says of the sweep itself."""

    grid: Annotated[
        tyro.conf.Positional[Text],
        tyro.conf.arg(
            metavar="GRID",
            help=f"A file (.toml), a named grid ({', '.join(grid_lib.NAMED)}) or a preset "
            f"({', '.join(PRESETS)}).",
        ),
    ]
    workers: Count = 1
    """Worker processes on this machine, each with its share of the cores."""
    cluster: Text | None = None
    """Carry out the cells on a Ray cluster instead: auto for the one that `ray start` made here (or
    RAY_ADDRESS), or HOST:PORT. All machines must share the file system of --runs-dir."""
    needs: Needs = Needs()
    retries: CountOrZero = 2
    """With --cluster: how many times a cell is tried again whose process or machine was lost."""
    retry_failed: bool = False
    """Try again the cells that failed; otherwise they are only listed."""
    list: bool = False
    """Show the cells and how far they have got, and do nothing."""
    runs_dir: Folder | None = None
    """Where the run folders go (None: as the grid says)."""
    data_dir: Folder | None = None
    """Folder of prepared data sets (None: as the grid says; else TFDS_DATA_DIR, else
    ~/tensorflow_datasets)."""


def parse(arguments: Sequence[str]) -> tuple[Options, dict[str, list[str]]]:
    """Reads the command line.

    Returns:
        What it says of the sweep, and the further flags, without hyphens, with their words.

    Raises:
        UserError: about a mistake.
    """
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        raise UserError(
            f"a grid comes first, then flags; got {arguments[0]!r}. For example: {PROG} "
            f"{next(iter(PRESETS))} --criterion ntk_sap random --seed 0 1 2"
        )
    ours, values = _split(arguments or ["--help"])
    try:
        options = command_line.read(Options, ours, prog=PROG, about=" ".join(ABOUT.split()))
    except SystemExit:
        raise SystemExit(0 if arguments else 2) from None
    if options.cluster is not None and options.workers > 1:
        raise UserError(
            "--workers: with --cluster, as many cells run at once as the machines have room for; "
            "see --cpus-per-cell, --gpus-per-cell and --tpus-per-cell"
        )
    return options, values


def _split(arguments: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Parts the flags of a sweep from those of the grid's program."""
    names = {"help", *programs.types(Options, ())}
    ours: list[str] = []
    values: dict[str, list[str]] = {}
    words = ours
    for word in arguments:
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name not in names:
            words = values.setdefault(name, [])
            words += [value] if equals else []
        else:
            words = ours if word.startswith("--") or word == "-h" else words
            words.append(word)
    return ours, values


def plan(options: Options, values: Mapping[str, Sequence[str]]) -> list[Cell]:
    """Returns the cells, checked, also against what their folders hold."""
    grid, only = _grid(options.grid, values)
    place = grid.base.runs_dir
    if options.runs_dir is None and (place.is_absolute() or ".." in place.parts):
        raise UserError(
            f"{options.grid}: runs_dir is {place}, and a grid file writes only below the current "
            f"folder. To have the run folders there: --runs-dir {shlex.quote(str(place))}"
        )
    asked = {"runs_dir": options.runs_dir, "data_dir": options.data_dir}
    changes: dict[str, Any] = {name: folder for name, folder in asked.items() if folder is not None}
    cells = []
    for config in grid_lib.cells(grid, only, name=options.grid):
        config = dataclasses.replace(config, **changes)
        cells.append(_cell(grid, config))
        run_folder.check(cells[-1].folder, to_dict(config) | {"resume": True})
    return cells


_SAME_TIME = ("seed", "density", "label")
"""Fields on which it depends little how long a cell takes."""

_JOB = ("dataset", "image_size", "model", "width", "weights", "training")
"""Fields on which it depends what is compiled for a cell."""


def _cell(grid: Grid, config: Any) -> Cell:
    _, preset = grid.program.presets[grid.preset]
    return Cell(
        module=grid.program.module,
        arguments=(grid.preset, *programs.flags(preset, config), "--resume"),
        folder=config.runs_dir / grid.program.run_name(config),
        accuracy=grid.program.accuracy,
        kind=tuple(value for name, value in programs.leaves(config) if name not in _SAME_TIME),
        job=tuple(getattr(config, name, None) for name in _JOB),
    )


def _grid(name: str, values: Mapping[str, Sequence[str]]) -> tuple[Grid, dict[str, list[Any]]]:
    """Returns the grid, and which values are wanted of those that a file gives."""
    if name.endswith(".toml") or name in grid_lib.NAMED:
        grid = grid_lib.read(grid_lib.NAMED.get(name, Path(name)))
        return grid, _lists(values, programs.types(type(grid.base)))
    configuration.check_name("grid or preset", name, dict.fromkeys((*grid_lib.NAMED, *PRESETS)))
    grid = grid_lib.from_preset(name)
    lists = _lists(values, programs.types(type(grid.base)))
    if not lists:
        raise UserError(
            f"{name} is a preset, and the grid is empty. Give flags with one or several values, "
            "such as --seed 0 1 2"
        )
    return grid._replace(tables=(Table("", lists),)), {}


def _lists(values: Mapping[str, Sequence[str]], kinds: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Returns the values of each field. A field that holds several by itself is given one."""
    lists = {}
    for name, words in values.items():
        flag = "--" + name.replace("_", "-")
        if name not in kinds:
            near = difflib.get_close_matches(name, (*programs.types(Options, ()), *kinds), n=1)
            suggestion = f" Did you mean --{near[0].replace('_', '-')}?" if near else ""
            raise UserError(f"unknown flag {flag}.{suggestion} See: {PROG} --help")
        if not words:
            raise UserError(f"{flag}: expected one or several values")
        each = [words] if programs.takes_several(kinds[name]) else words
        lists[name] = [configuration.read(kinds[name], value, flag, strict=False) for value in each]
    return lists
