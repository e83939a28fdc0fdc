"""Finds and reads run folders; a folder that cannot be read is named and left out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import config as config_lib
from experiments import run_folder
from experiments.command_line import UserError
from experiments.config import Config

NEEDED: dict[str, type | tuple[type, ...]] = {
    "density": (int, float),
    "last_test_accuracy": (int, float),
    "best_test_accuracy": (int, float),
    "dense_flops": int,
    "kept_flops": int,
    "search_seconds": (int, float),
    "training_seconds": (int, float),
    "layer_densities": dict,
}
"""What summary.json must hold; it may hold more, which older versions did not write."""


class Run(NamedTuple):
    """A complete run.

    Attributes:
        folder: where it was read from.
        config: what was asked for; options that did not exist yet have their default.
        summary: summary.json.
        sessions: environment.json, an entry for each time that the run was started.
        spectrum: rows of spectrum.csv; none if the spectrum was not measured.
    """

    folder: Path
    config: Config
    summary: dict[str, Any]
    sessions: list[dict[str, Any]]
    spectrum: list[run_folder.Row]


class Found(NamedTuple):
    """What the folders held: complete runs, incomplete run folders, and damaged ones with why."""

    runs: list[Run]
    incomplete: list[Path]
    damaged: list[tuple[Path, str]]


class Damaged(Exception):
    """A run folder that says it is complete and cannot be read."""


def find(roots: Sequence[Path]) -> Found:
    """Reads all run folders in and below the roots.

    Raises:
        UserError: a root that is no folder, or no run folder in any of them.
    """
    found = Found([], [], [])
    for folder in _folders(roots):
        if not run_folder.is_complete(folder):
            found.incomplete.append(folder)
            continue
        try:
            found.runs.append(read(folder))
        except Damaged as error:
            found.damaged.append((folder, str(error)))
    if not any(found):
        places = ", ".join(map(str, roots))
        raise UserError(
            f"no run folder in {places}. They hold a config.json, and are made by "
            "python -m experiments.cifar and python -m experiments.sweep"
        )
    return found


def _folders(roots: Sequence[Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root} is not a folder. Name folders that hold run folders")
        for folder in _walk(root):
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _walk(root: Path) -> Iterator[Path]:
    for path, children, files in os.walk(root, followlinks=True):
        children.sort()
        if {"config.json", "summary.json"} & set(files):
            children.clear()  # A run folder: its checkpoints hold no others.
            yield Path(path)


def read(folder: Path) -> Run:
    """Reads a complete run folder.

    Raises:
        Damaged: a file that is missing or not what it should be; the message names it.
    """
    config = _read_config(folder / "config.json")
    summary = _read_json(folder / "summary.json", dict)
    for name, kind in NEEDED.items():
        if not isinstance(summary.get(name), kind):
            raise Damaged(f"summary.json: {name!r} is missing or not a number or table")
    sessions = folder / "environment.json"
    try:
        spectrum = run_folder.read_table(folder / "spectrum.csv")
    except (OSError, ValueError, TypeError) as error:
        raise Damaged(f"spectrum.csv: {error}") from error
    if any(isinstance(value, str) for row in spectrum for value in row.values()):
        raise Damaged("spectrum.csv: not all are numbers")
    return Run(
        folder=folder,
        config=config,
        summary=summary,
        sessions=_read_json(sessions, list) if sessions.exists() else [],
        spectrum=spectrum,
    )


def _read_config(path: Path) -> Config:
    values = _read_json(path, dict)
    try:
        return config_lib.from_dict(_filled(config_lib.to_dict(Config()), values))
    except (AttributeError, KeyError, TypeError) as error:
        raise Damaged(f"config.json is not of this version: {error!r}") from error


def _filled(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Returns `values` with the options that did not exist when they were written."""
    filled = {
        name: _filled(default, values[name]) if isinstance(default, dict) else values[name]
        for name, default in defaults.items()
        if name in values
    }
    return {**defaults, **values, **filled}


def _read_json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Damaged(f"{path.name}: {error}") from error
    if not isinstance(value, kind):
        raise Damaged(f"{path.name}: expected a {kind.__name__}, got {type(value).__name__}")
    return value
