"""A grid of runs: from a TOML file, or from flags, to the configuration of every cell.

A grid file may say `preset` (of experiments.cifar or .tpp), `runs_dir`, `data_dir`, and `baseline`
for `experiments.study`. Its table `[set]` holds what is the same in every cell. `[grid]` has a list
for each field that varies, and means every combination; any number of `[[grids]]` are further
grids, each on its own. The keys of these tables are the flags of the preset's program, with
underscores. Of presets that both programs have, that of `experiments.tpp` is called `tpp:NAME`. The
files in `experiments/sweep/grids` can be called by name.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.cifar.config import Config
from experiments.shell import configuration, errors
from experiments.shell.configuration import Folder, check_name, show
from experiments.shell.errors import UserError
from experiments.storage import files, run_folder
from experiments.sweep import programs
from experiments.sweep.programs import PRESETS, Program

NAMED: dict[str, Path] = {
    path.stem: path for path in sorted((Path(__file__).parent / "grids").glob("*.toml"))
}
"""Name to file of the grids that come with the programs."""

LARGEST = 1 << 16
"""Bytes of a grid file."""

MOST_CELLS = 10_000


@configuration.configuration
class _File:
    """What a grid file holds."""

    preset: str | None = None
    runs_dir: Folder | None = None
    data_dir: Folder | None = None
    baseline: str = ""
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    grid: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    grids: tuple[dict[str, list[Any]], ...] = ()


class Table(NamedTuple):
    """One grid: every combination of the values of some fields of the configuration."""

    where: str  # Names the table in messages, such as `table.toml, [grid]`; empty for flags.
    lists: Mapping[str, Sequence[Any]]  # Field to values.


class Grid(NamedTuple):
    """Grids on top of one configuration."""

    program: Program
    preset: str  # The one that the commands of the cells begin with.
    base: Any  # The preset's configuration.
    fixed: Mapping[str, Any]  # Field to value, of those that are the same in every cell.
    tables: tuple[Table, ...]
    baseline: str = ""  # The arm that a study compares the others with.


# -- From a file or flags ------------------------------------------------------------------------


def read(path: Path) -> Grid:
    """Reads a grid file.

    Raises:
        UserError: no such file, no TOML, or a key or value that means nothing; the message says
            which, and where.
    """
    try:
        sections = tomllib.loads(files.read_text(path, largest=LARGEST))
    except (OSError, ValueError, RecursionError) as error:  # Wrong TOML: names line and column.
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot read the grid file {path}: {reason}") from error
    file = configuration.read(_File, sections, str(path))
    grid = from_preset(file.preset or "paper-cifar10", f"preset in {path}")
    base = Config() if file.preset is None else grid.base
    kinds = programs.types(type(base))
    where = f"{path}, [set]"
    values = {key: _read_value(key, value, kinds, where) for key, value in file.set.items()}
    folders = {"runs_dir": file.runs_dir, "data_dir": file.data_dir}
    base = programs.replace(base, {key: path for key, path in folders.items() if path is not None})
    tables = {"[grid]": file.grid} if "grid" in sections else {}
    tables |= {f"[[grids]] number {number}": table for number, table in enumerate(file.grids, 1)}
    if not tables:
        raise UserError(f"{path}: the grid is empty. Give it a table [grid] with lists of values")
    for name, lists in tables.items():
        if not lists or not all(lists.values()):
            example = "Give it lists, such as seed = [0, 1, 2]"
            raise UserError(f"{path}, {name}: the grid is empty. {example}")
        if both := values.keys() & lists.keys():
            raise UserError(f"{path}, {name}: {min(both)} is in [set] too. Give it in one of them")
    made = tuple(_table(lists, kinds, f"{path}, {name}") for name, lists in tables.items())
    return grid._replace(base=base, fixed=values, tables=made, baseline=file.baseline)


def _table(lists: Mapping[str, list[Any]], kinds: Mapping[str, Any], where: str) -> Table:
    read = {key: [_read_value(key, value, kinds, where) for value in lists[key]] for key in lists}
    return Table(where, read)


def _read_value(key: str, value: Any, kinds: Mapping[str, Any], where: str) -> Any:
    if key not in kinds:
        raise UserError(f"{where}: {configuration.unknown('key', key, kinds)}")
    return configuration.read(kinds[key], value, f"{where} {key}")


def from_preset(name: str, what: str = "preset") -> Grid:
    """Returns the grid of a preset alone, which has no cell yet; `what` names it in messages."""
    program, preset = PRESETS[check_name(what, name, PRESETS)]
    return Grid(program, preset, program.presets[preset][1], {}, ())


# -- From a grid to its cells --------------------------------------------------------------------


def cells(
    grid: Grid, only: Mapping[str, Sequence[Any]] | None = None, *, name: str = ""
) -> list[Any]:
    """Returns the configuration of every cell, checked, each once.

    The dense network is the same whatever is pruned, and there is one cell of it.
    Cells that give a field another value than `only`, field to values, are left out; messages about
    it call the grid `name`.

    Raises:
        UserError: a value that makes no sense or that no cell has, too many cells, none, or two
            that would share a run folder.
    """
    number = sum(math.prod(map(len, table.lists.values())) for table in grid.tables)
    if number > MOST_CELLS:
        where = grid.tables[0].where.partition(",")[0] or "the flags"
        raise UserError(f"{where}: {number:,} cells, expected at most {MOST_CELLS:,}")
    places: dict[str, tuple[str, Any]] = {}
    for where, config in _narrow(list(_combinations(grid)), only or {}, name):
        with errors.at(where):
            config = grid.program.alone(config)
        folder = grid.program.run_name(config)
        first_where, first = places.setdefault(folder, (where, config))
        different = run_folder.differences(*map(grid.program.computed, (first, config)))
        if different:
            both = " and ".join(dict.fromkeys((first_where, where)))
            raise UserError(
                f"{both or 'the flags'}: two cells go to the same run folder {folder} but differ "
                f"({'; '.join(different)}). Give one of them another name by a label, such as "
                'label = ["b"]'
            )
    return [config for _, config in places.values()]


def _combinations(grid: Grid) -> Iterator[tuple[str, Any]]:
    """Yields where each combination stands, and the configuration."""
    for where, lists in grid.tables:
        for values in itertools.product(*lists.values()):
            with errors.at(where):
                # All at once: what is fixed may be right only with what varies.
                changes = {**grid.fixed, **dict(zip(lists, values, strict=True))}
                config = programs.replace(grid.base, changes)
            yield where, config


def _narrow(
    combinations: list[tuple[str, Any]], only: Mapping[str, Sequence[Any]], name: str
) -> list[tuple[str, Any]]:
    # Values are compared as in the names of run folders, where a density has four digits.
    wanted = {key: list(map(show, values)) for key, values in only.items()}
    held = [
        {key: show(value) for key, value in programs.leaves(config) if key in only}
        for _, config in combinations
    ]
    for key, values in wanted.items():
        known = dict.fromkeys(fields[key] for fields in held)
        for value in values:
            if value not in known:
                raise UserError(
                    f"--{key.replace('_', '-')} {value}: the grid {name} has no such cell (there: "
                    f"{', '.join(known)}). Flags choose from a grid; for other values write a file"
                )
    kept = [
        combination
        for combination, fields in zip(combinations, held, strict=True)
        if all(fields[key] in values for key, values in wanted.items())
    ]
    if not kept:
        raise UserError(f"the grid {name} has no cell with all of these values")
    return kept
