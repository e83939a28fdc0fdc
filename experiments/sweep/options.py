"""The command line of `python -m experiments.sweep`: from its words to the cells of the grid."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.cifar.config import Config
from experiments.cifar.presets import PRESETS
from experiments.shell import command_line
from experiments.shell.command_line import check_name
from experiments.shell.configuration import to_dict
from experiments.shell.errors import UserError
from experiments.storage import run_folder
from experiments.sweep import cells, fields
from experiments.sweep import grid as grid_lib

PROG = "python -m experiments.sweep"


def _values_class() -> type:
    """Makes a class with a flag for every field that a grid can vary, of one or several values."""
    made = []
    for name, kind in fields.TYPES.items():
        # Of what is a tuple by itself, such as --drop-epochs, a flag gives one.
        axis = kind if fields.is_tuple(kind) else tuple.__class_getitem__((kind, ...))
        help_options = tyro.conf.arg(help_behavior_hint="")
        made.append((name, Annotated[axis, help_options], field(default=())))
    return dataclasses.make_dataclass("Values", made, frozen=True)


Values = _values_class()


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says."""

    grid: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(
            metavar="GRID",
            help=f"A file (.toml), a named grid ({', '.join(grid_lib.NAMED)}) or a preset "
            f"({', '.join(PRESETS)}).",
        ),
    ]
    workers: int = 1
    """Worker processes, each with its share of the cores."""
    cluster: str | None = None
    """Carry out the cells on a Ray cluster instead: auto for the one that `ray start` made here (or
    RAY_ADDRESS), or HOST:PORT. All machines must share the file system of --runs-dir."""
    cpus_per_cell: float = 1.0
    """With --cluster: CPU cores that a cell takes of a machine."""
    gpus_per_cell: float = 0.0
    """With --cluster: GPUs likewise; with 0.5, two cells share one."""
    tpus_per_cell: float = 0.0
    """With --cluster: TPU chips likewise."""
    retries: int = 2
    """With --cluster: how many times a cell is tried again whose process or machine was lost."""
    retry_failed: bool = False
    """Try again the cells that failed; otherwise they are only listed."""
    list: bool = False
    """Show the cells and how far they have got, and do nothing."""
    runs_dir: Path | None = None
    """Where the run folders go (default: as the grid says)."""
    data_dir: Path | None = None
    """Folder of prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)."""
    values: Values = field(default_factory=Values)  # type: ignore[valid-type]
    """Of a preset: runs every combination of these values. Of a file or named grid: runs only the
    cells that have them. What they mean: python -m experiments.cifar short --help"""


def parse(arguments: Sequence[str]) -> Options:
    """Reads the command line; raises a `UserError` about a mistake."""
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        raise UserError(
            f"a grid comes first, then flags; got {arguments[0]!r}. For example: {PROG} "
            f"{next(iter(PRESETS))} --criterion ntk_sap random --seed 0 1 2"
        )
    try:
        options = command_line.read(
            Options, arguments or ["--help"], prog=PROG, about="Carries out a grid of runs."
        )
    except SystemExit:
        raise SystemExit(0 if arguments else 2) from None
    if options.workers < 1:
        raise UserError(f"--workers: expected an integer of at least 1, got {options.workers}")
    _check_cluster(options)
    return options


def _check_cluster(options: Options) -> None:
    if options.cluster is not None and options.workers > 1:
        raise UserError(
            "--workers: with --cluster, as many cells run at once as the machines have room for; "
            "see --cpus-per-cell, --gpus-per-cell and --tpus-per-cell"
        )
    for name in ("cpus_per_cell", "gpus_per_cell", "tpus_per_cell"):
        number = getattr(options, name)
        is_some = number > 0 or name != "cpus_per_cell"
        if not (0 <= number < 1e6 and is_some and (number < 1 or number == int(number))):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag}: expected a whole number or a fraction of one, got {number:g}")
    if options.retries < 0:
        raise UserError(f"--retries: expected an integer of at least 0, got {options.retries}")


def plan(options: Options) -> list[Config]:
    """Returns the configurations of all cells, checked, also against what their folders hold."""
    grid = _grid(options)
    place = grid.base.runs_dir
    if options.runs_dir is None and (place.is_absolute() or ".." in place.parts):
        raise UserError(
            f"{options.grid}: runs_dir is {place}, and a grid file writes only below the current "
            f"folder. To have the run folders there: --runs-dir {shlex.quote(str(place))}"
        )
    cell_configs = grid_lib.cells(grid)
    folders = {
        name: value
        for name in ("runs_dir", "data_dir")
        if (value := getattr(options, name)) is not None
    }
    configs = [dataclasses.replace(config, **folders, resume=True) for config in cell_configs]
    for config in configs:
        run_folder.check(cells.folder(config), to_dict(config))
    return configs


def _grid(options: Options) -> grid_lib.Grid:
    name = options.grid
    lists: dict[str, Sequence[Any]] = {}
    for key, kind in fields.TYPES.items():
        given = getattr(options.values, key)
        if given:
            lists[key] = (given,) if fields.is_tuple(kind) else given
    if name.endswith(".toml") or name in grid_lib.NAMED:
        grid = grid_lib.read(grid_lib.NAMED.get(name, Path(name)))
        return grid_lib.narrow(grid, lists, name=name) if lists else grid
    check_name("grid or preset", name, dict.fromkeys((*grid_lib.NAMED, *PRESETS)))
    return grid_lib.from_preset(name, lists)
