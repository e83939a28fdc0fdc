"""A grid of runs: from a TOML file, or from flags, to the configuration of every cell.

    preset = "short"                 # of experiments.cifar or .tpp: what the tables do not say
    runs_dir = "runs/table"          # where the run folders go, below the current folder
    data_dir = "data"                # where prepared data sets are

    [set]                            # the same in every cell
    epochs = 4

    [grid]                           # every combination of the values in these lists
    criterion = ["dense", "random", "ntk_sap"]
    density = [0.05, 0.02]
    seed = [0, 1, 2]

    [[grids]]                        # a further grid, on its own; there may be several
    criterion = ["ntk_sap", "synflow"]
    shuffle_mask = [true]
    density = [0.05]
    seed = [0, 1, 2]

The keys of `set`, `grid` and `grids` are the flags of the preset's program, with underscores. Of
presets that both programs have, that of `experiments.tpp` is called `tpp:NAME`. The files in
`experiments/sweep/grids` can be called by name.
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
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    grid: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    grids: tuple[dict[str, list[Any]], ...] = ()


class Table(NamedTuple):
    """One grid: every combination of the values in `lists`, each a list for one field.

    Attributes:
        where: names the table in messages, such as `table.toml, [grid]`; empty for flags.
        lists: field of the configuration to its values.
    """

    where: str
    lists: Mapping[str, Sequence[Any]]


class Grid(NamedTuple):
    """Grids on top of one configuration.

    Attributes:
        program: whose runs the cells are.
        preset: the one that the commands of the cells begin with.
        base: holds what the grids do not vary.
        tables: the grids.
    """

    program: Program
    preset: str
    base: Any
    tables: tuple[Table, ...]


# -- From a file or flags ------------------------------------------------------------------------


def read(path: Path) -> Grid:
    """Reads a grid file.

    Raises:
        UserError: no such file, no TOML, or a key or value that means nothing; the message says
            which, and where.
    """
    try:
        text = files.read_text(path, largest=LARGEST)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot read the grid file {path}: {reason}") from error
    try:
        sections = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError names line and column.
        raise UserError(f"{path} is not TOML: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path} is not TOML: it is nested too deeply") from error

    file = configuration.read(_File, sections, str(path))
    grid = from_preset(file.preset or "paper-cifar10", f"preset in {path}")
    base = Config() if file.preset is None else grid.base
    folders = {name: getattr(file, name) for name in ("runs_dir", "data_dir")}
    base = dataclasses.replace(base, **{name: value for name, value in folders.items() if value})
    kinds = programs.types(type(base))

    where = f"{path}, [set]"
    fixed = {key: _read_value(key, value, kinds, where) for key, value in file.set.items()}
    with errors.at(where):
        base = programs.replace(base, fixed)
    tables = {f"[[grids]] number {number}": table for number, table in enumerate(file.grids, 1)}
    tables = ({"[grid]": file.grid} if "grid" in sections else {}) | tables
    if not tables:
        raise UserError(f"{path}: the grid is empty. Give it a table [grid] with lists of values")
    made = tuple(_table(lists, kinds, f"{path}, {name}") for name, lists in tables.items())
    return grid._replace(base=base, tables=made)


def _table(lists: Mapping[str, list[Any]], kinds: Mapping[str, Any], where: str) -> Table:
    if not lists or not all(lists.values()):
        raise UserError(f"{where}: the grid is empty. Give it lists, such as seed = [0, 1, 2]")
    read = {key: [_read_value(key, value, kinds, where) for value in lists[key]] for key in lists}
    return Table(where, read)


def _read_value(key: str, value: Any, kinds: Mapping[str, Any], where: str) -> Any:
    if key not in kinds:
        raise UserError(f"{where}: {configuration.unknown('key', key, kinds)}")
    return configuration.read(kinds[key], value, f"{where} {key}")


def from_preset(name: str, what: str = "preset") -> Grid:
    """Returns the grid of a preset alone, which has no cell yet; `what` names it in messages."""
    check_name(what, name, PRESETS)
    program, preset = PRESETS[name]
    return Grid(program, preset, program.presets[preset][1], ())


def narrow(grid: Grid, lists: Mapping[str, Sequence[Any]], *, name: str) -> Grid:
    """Returns the part of a grid in which fields have one of the given values.

    Args:
        grid: what to choose from.
        lists: field to the values that are wanted.
        name: of the grid, for messages.

    Raises:
        UserError: a value that the grid does not have, or none left.
    """
    base = dict(programs.leaves(grid.base))
    present = [{key: table.lists.get(key, [base[key]]) for key in lists} for table in grid.tables]
    for key, wanted in lists.items():
        known = [value for table in present for value in table[key]]
        for value in wanted:
            if not _is_in(value, known):
                raise UserError(
                    f"--{key.replace('_', '-')} {show(value)}: the grid {name} has no such "
                    f"cell (there: {', '.join(dict.fromkeys(map(show, known)))}). Flags "
                    "choose from a grid; for other values write a file"
                )
    kept = []
    for table, values in zip(grid.tables, present, strict=True):
        chosen = {
            key: [value for value in values[key] if _is_in(value, lists[key])] for key in lists
        }
        if all(chosen.values()):
            kept.append(Table(table.where, {**table.lists, **chosen}))
    if not kept:
        raise UserError(f"the grid {name} has no cell with all of these values")
    return grid._replace(tables=tuple(kept))


def _is_in(value: Any, values: Sequence[Any]) -> bool:
    """Compares as the names of run folders do, in which a density has four digits."""
    return show(value) in map(show, values)


# -- From a grid to its cells --------------------------------------------------------------------


def cells(grid: Grid) -> list[Any]:
    """Returns the configuration of every cell, checked, each once.

    The dense network is the same whatever is pruned, and there is one cell of it.

    Raises:
        UserError: a value that makes no sense, too many cells, or two that would share a run
            folder.
    """
    number = sum(math.prod(map(len, table.lists.values())) for table in grid.tables)
    if number > MOST_CELLS:
        where = grid.tables[0].where.partition(",")[0] or "the flags"
        raise UserError(f"{where}: {number:,} cells, expected at most {MOST_CELLS:,}")
    places: dict[str, tuple[str, Any]] = {}
    for table in grid.tables:
        for config in _combinations(grid, table):
            name = grid.program.run_name(config)
            where, first = places.setdefault(name, (table.where, config))
            different = run_folder.differences(*map(grid.program.computed, (first, config)))
            if different:
                both = " and ".join(dict.fromkeys((where, table.where)))
                raise UserError(
                    f"{both or 'the flags'}: two cells go to the same run "
                    f"folder {name} but differ ({'; '.join(different)}). Give one of them "
                    'another name by a label, such as label = ["b"]'
                )
    return [config for _, config in places.values()]


def _combinations(grid: Grid, table: Table) -> Iterator[Any]:
    for values in itertools.product(*table.lists.values()):
        with errors.at(table.where):
            config = programs.replace(grid.base, dict(zip(table.lists, values, strict=True)))
            config = grid.program.alone(config)
        yield config
