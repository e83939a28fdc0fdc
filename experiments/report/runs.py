"""Finds and reads run folders. A folder that cannot be read is reported and left out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experiments.cifar import config as config_lib
from experiments.cifar.config import Config
from experiments.shell.errors import UserError
from experiments.storage import files, run_folder


class _Record(BaseModel):
    """What a program recorded; further fields are ignored, so that programs can add some."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Summary(_Record):
    """What the report uses of summary.json; what older versions did not record has defaults."""

    density: float
    effective_density: float | None = None
    last_test_accuracy: float
    best_test_accuracy: float
    best_epoch: int | None = None
    dense_flops: Annotated[float, Field(gt=0)]
    kept_flops: float
    search_seconds: float
    training_seconds: float
    layer_densities: dict[str, float]
    live_channels: dict[str, float] = {}
    dead_layers: tuple[str, ...] | None = None
    mask_sha256: str = ""
    dataset_note: str = ""
    dataset_source: str = "not recorded"

    @property
    def flops_kept(self) -> float:
        """Fraction of the dense network's FLOPs."""
        return self.kept_flops / self.dense_flops

    @property
    def mean_live_channels(self) -> float | None:
        """Fraction of live channels, averaged over layers."""
        shares = self.live_channels.values()
        return sum(shares) / len(shares) if shares else None


class JacobianValues(_Record):
    """Singular values of the Jacobian."""

    mean: float


class FilterSummary(_Record):
    """What the report uses of the summary.json of `experiments.tpp`."""

    # It becomes part of a picture's name.
    network: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]{1,200}$")]
    method: str
    size: str
    ratio: float
    finetune_lr: float
    label: str
    seed: int
    pruned_accuracy: float
    last_accuracy: float
    best_accuracy: float
    pruned_jsv: JacobianValues
    final_jsv: JacobianValues
    parameters: int
    flops: float
    speedup_flops: float
    speedup_measured: dict[str, float]
    latency_seconds: dict[str, dict[str, tuple[float, float, float]]]


class Session(_Record):
    """An entry of environment.json: one start of a program."""

    command: str = ""
    python: str = "?"
    packages: dict[str, str] = {}
    devices: tuple[str, ...] = ()


class Run(NamedTuple):
    """A complete run that pruned weights.

    Attributes:
        folder: where it was read from.
        config: what was asked for; options that did not exist yet have their defaults.
        summary: its results.
        sessions: one for each time that the run was started.
        spectrum: rows of spectrum.csv; none if the spectrum was not measured.
    """

    folder: Path
    config: Config
    summary: Summary
    sessions: tuple[Session, ...]
    spectrum: list[run_folder.Row]


class FilterRun(NamedTuple):
    """A complete run of `experiments.tpp`, which pruned filters; attributes as those of `Run`."""

    folder: Path
    summary: FilterSummary
    sessions: tuple[Session, ...]


class Found(NamedTuple):
    """What the folders hold.

    Attributes:
        runs: runs that pruned weights.
        filter_runs: runs that pruned filters.
        incomplete: folders of runs that have not finished.
        damaged: folders that cannot be read, and why.
    """

    runs: list[Run]
    filter_runs: list[FilterRun]
    incomplete: list[Path]
    damaged: list[tuple[Path, str]]

    @property
    def complete(self) -> list[Run | FilterRun]:
        """All complete runs."""
        return [*self.runs, *self.filter_runs]


class Damaged(Exception):
    """A file of a complete run cannot be read; the message names it."""


def find(roots: Sequence[Path]) -> Found:
    """Reads all run folders in and below the roots.

    Raises:
        UserError: a root that is no folder, or no run folder in any of them.
    """
    found = Found([], [], [], [])
    for folder in _folders(roots):
        try:
            config = _read_json(folder / "config.json", dict)
            if "data" in config:  # What several runs of experiments.tpp share; no run.
                continue
            if not run_folder.is_complete(folder):
                found.incomplete.append(folder)
            elif "method" in config:
                found.filter_runs.append(_read_filter_run(folder))
            else:
                found.runs.append(_read_run(folder, config))
        except Damaged as error:
            found.damaged.append((folder, str(error)))
    if not any(found):
        raise UserError(
            f"no run folder in {', '.join(map(str, roots))}. A run folder holds a config.json; "
            "python -m experiments.cifar, experiments.tpp and experiments.sweep make them"
        )
    return found


def _folders(roots: Sequence[Path]) -> list[Path]:
    folders: dict[Path, Path] = {}
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root} is not a folder. Name folders that hold run folders")
        for folder in _walk(root):
            folders.setdefault(folder.resolve(), folder)
    return list(folders.values())


def _walk(root: Path) -> Iterator[Path]:
    for path, children, names in os.walk(root):
        children.sort()
        if {"config.json", "summary.json"} & set(names):
            children.clear()  # The checkpoints of a run hold no other runs.
            yield Path(path)


def _read_run(folder: Path, config: Mapping[str, Any]) -> Run:
    try:
        asked = config_lib.from_dict(config)
    except UserError as error:
        raise Damaged(f"config.json is not of this version: {error}") from error
    try:
        spectrum = run_folder.read_table(folder / "spectrum.csv")
    except UserError as error:
        raise Damaged(f"spectrum.csv: {error}") from error
    if any(isinstance(value, str) for row in spectrum for value in row.values()):
        raise Damaged("spectrum.csv: not all are numbers")
    summary = _read_record(folder / "summary.json", Summary)
    return Run(folder, asked, summary, _read_sessions(folder), spectrum)


def _read_filter_run(folder: Path) -> FilterRun:
    summary = _read_record(folder / "summary.json", FilterSummary)
    return FilterRun(folder, summary, _read_sessions(folder))


def _read_sessions(folder: Path) -> tuple[Session, ...]:
    path = folder / "environment.json"
    entries = _read_json(path, list) if path.exists() else []
    return tuple(_check(entry, Session, path.name) for entry in entries)


RecordT = TypeVar("RecordT", bound=_Record)


def _read_record(path: Path, kind: type[RecordT]) -> RecordT:
    return _check(_read_json(path, dict), kind, path.name)


def _check(value: Any, kind: type[RecordT], name: str) -> RecordT:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Damaged(f"{name}: {where}: {first['msg']}") from error


def _read_json(path: Path, kind: type) -> Any:
    try:
        return files.read_json(path, kind)
    except (OSError, ValueError) as error:
        raise Damaged(f"{path.name}: {error}") from error
