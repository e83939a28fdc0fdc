"""Finds and reads run folders; a folder that cannot be read is named and left out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.cifar import config as config_lib
from experiments.cifar.config import Config
from experiments.shell.errors import UserError
from experiments.storage import files, run_folder

NUMBERS = (
    *("density", "last_test_accuracy", "best_test_accuracy", "dense_flops", "kept_flops"),
    *("search_seconds", "training_seconds"),
)
"""Numbers that summary.json must hold; it may hold more, which older versions did not write."""


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
    seen = set()
    for path, children, names in os.walk(root, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:  # Links may lead round in circles.
            children.clear()
            continue
        seen.add(real)
        children.sort()
        if {"config.json", "summary.json"} & set(names):
            children.clear()  # A run folder: its checkpoints hold no others.
            yield Path(path)


def read(folder: Path) -> Run:
    """Reads a complete run folder.

    Raises:
        Damaged: a file that is missing or not what it should be; the message names it.
    """
    config = _read_config(folder / "config.json")
    summary = _read_json(folder / "summary.json", dict)
    _check_summary(summary)
    path = folder / "environment.json"
    sessions = _read_json(path, list) if path.exists() else []
    if not all(map(_is_session, sessions)):
        raise Damaged("environment.json: expected a list of tables, with packages and devices")
    try:
        spectrum = run_folder.read_table(folder / "spectrum.csv")
    except UserError as error:
        raise Damaged(f"spectrum.csv: {error}") from error
    if any(isinstance(value, str) for row in spectrum for value in row.values()):
        raise Damaged("spectrum.csv: not all are numbers")
    return Run(
        folder=folder,
        config=config,
        summary=summary,
        sessions=sessions,
        spectrum=spectrum,
    )


def _check_summary(summary: dict[str, Any]) -> None:
    for name in NUMBERS:
        if not _is_number(summary.get(name)):
            raise Damaged(f"summary.json: {name!r} is missing or not a number")
    if summary["dense_flops"] <= 0:
        raise Damaged("summary.json: 'dense_flops' is not positive")
    for name in ("layer_densities", "live_channels"):
        layers = summary.get(name, {} if name == "live_channels" else None)
        if not isinstance(layers, dict) or not all(map(_is_number, layers.values())):
            raise Damaged(f"summary.json: {name!r} is missing or not a table of numbers")
    dead = summary.get("dead_layers", [])
    if not isinstance(dead, list) or not all(isinstance(layer, str) for layer in dead):
        raise Damaged("summary.json: 'dead_layers' is not a list of layers")
    if "effective_density" in summary and not _is_number(summary["effective_density"]):
        raise Damaged("summary.json: 'effective_density' is not a number")


def _is_session(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("packages", {}), dict)
        and isinstance(devices := value.get("devices", []), list)
        and all(isinstance(device, str) for device in devices)
    )


def _is_number(value: Any) -> bool:
    # No infinity or NaN, nor integers that become infinite.
    return isinstance(value, int | float) and -1e30 < value < 1e30


def _read_config(path: Path) -> Config:
    values = _read_json(path, dict)
    try:
        return config_lib.from_dict(values)
    except UserError as error:
        raise Damaged(f"config.json is not of this version: {error}") from error


def _read_json(path: Path, kind: type) -> Any:
    try:
        return files.read_json(path, kind)
    except (OSError, ValueError) as error:
        raise Damaged(f"{path.name}: {error}") from error
