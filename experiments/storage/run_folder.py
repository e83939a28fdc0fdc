"""The folder of one run: what is written where, so that nothing is lost when a run is interrupted.

    config.json        the configuration
    environment.json   versions and devices, an entry for each time the run was started or resumed
    lock               locked by the program that is at the run; says which
    search.csv         a row a round: density, threshold, trace, seconds, density of each layer
    search/            masks and rows after the last two rounds, until the run is complete
    mask.safetensors   the mask that was found; mask.sha256 holds its digest (`masks.digest`)
    search.json        the rows of search.csv, for a resumed run
    metrics.csv        a row an epoch: learning rate, losses, accuracies, seconds (with evaluation)
    spectrum.csv       a row an epoch, if asked for: kernel distance, eigenvalues of the NTK
    checkpoints/       the last training states (Orbax)
    damaged/           checkpoints that were found damaged
    failure/           what led to a score or loss that is not finite
    summary.json       the results; its presence says that the run is complete
    *.png              pictures

The seconds of the first round and epoch include compilation. Every file is written aside and then
renamed: it is there as a whole, or not at all. What a resumed run starts from carries its SHA-256.
"""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import io
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from experiments.shell.errors import UserError
from experiments.storage import files, locking

if TYPE_CHECKING:  # Not every program draws, and the import takes most of a second.
    from matplotlib.figure import Figure

PACKAGES = ("ntksap-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
NOT_COMPARED = (
    *("data_dir", "data_workers", "compare", "runs_dir", "resume"),
    *("save_minutes", "debug_nans", "tensorboard", "processes"),
    "vmap_samples",  # Of version 0.1.
)
"""Fields of a configuration that may differ when a run is resumed: they change no result."""

EPOCH, DISTANCE, EIGENVALUE = "epoch", "kernel_distance", "eigenvalue_"
"""Columns of spectrum.csv; each eigenvalue's ends in its index."""

Row = dict[str, Any]


# -- The folder ----------------------------------------------------------------------------------


def check(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises a `UserError` unless a run of this configuration can start or go on in `folder`.

    Args:
        folder: the run folder, whether it is there or not.
        config: from `configuration.to_dict`, with `resume` in it.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; the run folder goes there. Choose another --runs-dir")
    if not folder.exists():
        return
    # A program that is killed at its start leaves no more than these, and what a sweep writes.
    began = {folder / name for name in (locking.NAME, "log.txt", "error.txt")}
    if not set(folder.iterdir()) - began - set(files.leftovers(folder)):
        return
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} exists and is not a run folder. Choose another --runs-dir")
    if not config["resume"]:
        state = "a complete run" if is_complete(folder) else "an interrupted run"
        raise UserError(
            f"{folder} exists and holds {state}. Use --resume to go on with it, another --runs-dir "
            "to start anew beside it, or delete it"
        )
    different = differences(read_config(folder), config)
    if different:
        raise UserError(
            f"{folder} was made with another configuration ({'; '.join(different)}). Resume with "
            "the values it was made with, or use another --runs-dir"
        )


def make(folder: Path) -> None:
    """Makes the folder, if need be; raises a `UserError` if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--runs-dir: cannot make the folder {folder}: {error.strerror}") from error


def prepare(folder: Path, config: Mapping[str, Any], *, data_source: str) -> None:
    """Records configuration and environment, in a folder that is checked and locked.

    Args:
        folder: the run folder.
        config: of the run, from `configuration.to_dict`.
        data_source: where the images come from, with version and fingerprint.

    Raises:
        UserError: the images are not those that the run began with.
    """
    files.remove_leftovers(folder)
    environments = folder / "environment.json"
    sessions = files.read_json(environments, list) if environments.exists() else []
    if sessions:
        before = sessions[-1].get("data") if isinstance(sessions[-1], dict) else None
        if before != data_source:
            raise UserError(
                f"{folder} was begun with other images ({before}) than those found now "
                f"({data_source}). Name the folder of the former by --data-dir, or another "
                "--runs-dir"
            )
    if not (folder / "config.json").exists():
        write_json(folder / "config.json", config)
    write_json(environments, [*sessions, {**environment(), "data": data_source}])


def describe(folder: Path) -> str:
    """Says what a run will find in its folder; nothing if it is new."""
    if not (folder / "config.json").exists():
        return ""
    return " (complete: shown again)" if is_complete(folder) else " (goes on where it stopped)"


def is_complete(folder: Path) -> bool:
    """Says whether the run was carried out to its end."""
    return (folder / "summary.json").exists()


def identity(folder: Path, mask_digest: str = "") -> str:
    """Returns a digest of what a run computes, by which its checkpoints are told from another's."""
    return files.digest([computed(read_config(folder)), mask_digest])


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns one phrase, `epochs: 2 -> 4`, for each field in which two configurations differ.

    Fields that do not change what a run computes are not compared.
    """
    phrases = []
    old, new = computed(old), computed(new)
    for name in dict.fromkeys((*old, *new)):
        before, after = old.get(name, "(none)"), new.get(name, "(none)")
        if isinstance(before, dict) and isinstance(after, dict):
            phrases += differences(before, after)
        elif before != after:
            phrases.append(f"{name}: {before} -> {after}")
    return phrases


def computed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out of a configuration what does not change what a run computes."""
    return {name: config[name] for name in config if name not in NOT_COMPARED}


def environment() -> dict[str, Any]:
    """Returns what a result depends on besides the configuration."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv[1:]),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# -- Files ---------------------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, indented."""
    files.write_text(path, json.dumps(value, indent=2) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the configuration of a run, for `config.from_dict`."""
    return files.read_json(folder / "config.json")


def read_summary(folder: Path) -> dict[str, Any]:
    """Returns the results of a complete run."""
    return files.read_json(folder / "summary.json")


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of the same columns as CSV."""
    with files.aside(path) as aside, aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path) -> list[Row]:
    """Returns the rows that `write_table` wrote, numbers as numbers; none if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return []
    with files.reading(path):
        rows = list(csv.DictReader(io.StringIO(files.read_text(path)), strict=True))
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("its rows differ in length")
    return [{name: _number(cell) for name, cell in row.items()} for row in rows]


def write_picture(path: Path, figure: Figure) -> None:
    """Writes a figure as PNG."""
    with files.aside(path) as aside:
        figure.savefig(aside, format="png", dpi=150)


def _number(cell: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell
