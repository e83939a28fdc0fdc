"""The folder of one run: what is written where, so that nothing is lost when a run is interrupted.

    config.json        the configuration
    environment.json   versions and devices, an entry for each time the run was started or resumed
    search.csv         a row a round: density, threshold, trace, seconds, density of each layer
    search/            the mask after the last round, while the search goes on
    mask.npz           the mask that was found; mask.sha256 holds its digest (`masks.digest`)
    metrics.csv        a row an epoch: learning rate, losses, accuracies, seconds (with evaluation)
    spectrum.csv       a row an epoch, if asked for: kernel distance, eigenvalues of the NTK
    checkpoints/       the training state after the last epochs (Orbax)
    summary.json       the results; its presence says that the run is complete
    *.png              pictures

The seconds of the first round and epoch include compilation. Every file is written aside and then
renamed: it is there as a whole, or not at all.
"""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure

from experiments import config as config_lib
from experiments.command_line import UserError
from ntksap_jax import masks
from ntksap_jax.types import Mask, Params, RoundInfo

PACKAGES = ("ntksap-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
LAYER = "density of "
"""What the columns of search.csv with the density of a layer start with."""

Row = dict[str, Any]


# -- The folder ----------------------------------------------------------------------------------


def check(folder: Path, config: config_lib.Config) -> None:
    """Raises a `UserError` unless a run of this configuration can start or go on in `folder`."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; the run folder goes there. Choose another --runs-dir")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} exists and is not a run folder. Choose another --runs-dir")
    if not config.resume:
        state = "a complete run" if is_complete(folder) else "an interrupted run"
        raise UserError(
            f"{folder} exists and holds {state}. Use --resume to go on with it, another --runs-dir "
            "to start anew beside it, or delete it"
        )
    different = config_lib.differences(_read_json(folder / "config.json"), _plain(config))
    if different:
        raise UserError(
            f"{folder} was made with another configuration ({'; '.join(different)}). Resume with "
            "the values it was made with, or use another --runs-dir"
        )


def prepare(folder: Path, config: config_lib.Config, *, data_source: str) -> None:
    """Makes the folder, if need be, and records configuration and environment; after `check`.

    Args:
        folder: the run folder.
        config: of the run.
        data_source: where the images come from, with version and fingerprint.

    Raises:
        UserError: the images are not those that the run began with, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--runs-dir: cannot make the folder {folder}: {error.strerror}") from error
    environments = folder / "environment.json"
    sessions = _read_json(environments) if environments.exists() else []
    if sessions and sessions[-1]["data"] != data_source:
        raise UserError(
            f"{folder} was begun with other images ({sessions[-1]['data']}) than those found now "
            f"({data_source}). Name the folder of the former by --data-dir, or another --runs-dir"
        )
    if not (folder / "config.json").exists():
        write_json(folder / "config.json", _plain(config))
    write_json(environments, [*sessions, {**environment(), "data": data_source}])


def describe(folder: Path) -> str:
    """Says what a run will find in its folder; nothing if it is new."""
    if not (folder / "config.json").exists():
        return ""
    return " (complete: shown again)" if is_complete(folder) else " (goes on where it stopped)"


def is_complete(folder: Path) -> bool:
    """Says whether the run was carried out to its end."""
    return (folder / "summary.json").exists()


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


def _plain(config: config_lib.Config) -> dict[str, Any]:
    return config_lib.to_dict(config)


# -- The search ----------------------------------------------------------------------------------


def save_round(folder: Path, rows: Sequence[Row], mask: Mask) -> None:
    """Records the mask and the rows so far, after a round of the search.

    The mask comes first, under the number of its round, so that each row in search.csv has one.
    """
    (folder / "search").mkdir(exist_ok=True)
    latest = folder / "search" / f"round-{rows[-1]['round']}.npz"
    masks.save(latest, mask)
    write_table(folder / "search.csv", rows)
    for path in latest.parent.glob("round-*.npz"):
        if path != latest:
            path.unlink()


def load_round(folder: Path, like: Params) -> tuple[list[Row], Mask | None]:
    """Returns the rows so far and the mask after the last of them; at the start, none."""
    rows = read_table(folder / "search.csv")
    if not rows:
        return [], None
    path = folder / "search" / f"round-{rows[-1]['round']}.npz"
    return rows, _load_mask(path, like, digest=rows[-1]["sha256"])


def round_row(info: RoundInfo, mask: Mask) -> Row:
    """Returns one round of the search as a row of search.csv."""
    return {
        "round": info.round,
        "density": info.density,
        "num_kept": info.num_kept,
        "threshold": info.threshold,
        **info.metrics,
        "seconds": round(info.seconds, 3),
        "sha256": masks.digest(mask),
        **{LAYER + path: density for path, density in info.layer_densities.items()},
    }


def save_mask(folder: Path, mask: Mask) -> None:
    """Writes the mask that the search found, and drops what the search needed on its way."""
    masks.save(folder / "mask.npz", mask)
    with _aside(folder / "mask.sha256") as path:
        path.write_text(masks.digest(mask) + "\n")
    shutil.rmtree(folder / "search", ignore_errors=True)


def load_mask(folder: Path, like: Params) -> Mask | None:
    """Returns the mask that the search found, or nothing if the search is not complete."""
    if not (folder / "mask.sha256").exists():
        return None
    digest = (folder / "mask.sha256").read_text().strip()
    return _load_mask(folder / "mask.npz", like, digest=digest)


def _load_mask(path: Path, like: Params, *, digest: str) -> Mask:
    advice = f"Restore it, or delete {path.parent} and run again"
    try:
        mask = masks.load(path, like=like)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read the mask {path}: {error} {advice}") from error
    if masks.digest(mask) != digest:
        raise UserError(f"the mask {path} is not the one whose SHA-256 was recorded. {advice}")
    return mask


# -- Files ---------------------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, indented."""
    with _aside(path) as aside:
        aside.write_text(json.dumps(value, indent=2) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the configuration of a run, for `config.from_dict`."""
    return _read_json(folder / "config.json")


def read_summary(folder: Path) -> dict[str, Any]:
    """Returns the results of a complete run."""
    return _read_json(folder / "summary.json")


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of the same columns as CSV."""
    with _aside(path) as aside, aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path) -> list[Row]:
    """Returns the rows that `write_table` wrote, numbers as numbers; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: _number(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def write_picture(path: Path, figure: Figure) -> None:
    """Writes a figure as PNG."""
    with _aside(path) as aside:
        figure.savefig(aside, format="png", dpi=150)


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Yields a path to write to, which takes the place of `path` when all went well."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}. Restore it, or delete the folder") from error


def _number(cell: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell
