"""Finds and reads run folders. A folder that cannot be read is reported and left out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import AliasPath, BaseModel, ConfigDict, Field, ValidationError

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


class FilterSummary(_Record):
    """What the report uses of the summary.json of `experiments.tpp`."""

    # It becomes part of a picture's name.
    network: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]{1,200}$")]
    method: str
    size: str
    label: str
    seed: int
    finetune_lr: float
    parameters: int
    flops: float
    ratio: float
    speedup_flops: float
    speedup_1: Annotated[float, Field(validation_alias=AliasPath("speedup_measured", "1"))]
    speedup_128: Annotated[float, Field(validation_alias=AliasPath("speedup_measured", "128"))]
    pruned_accuracy: float
    last_accuracy: float
    best_accuracy: float
    pruned_jsv: Annotated[float, Field(validation_alias=AliasPath("pruned_jsv", "mean"))]
    final_jsv: Annotated[float, Field(validation_alias=AliasPath("final_jsv", "mean"))]
    latency_seconds: dict[str, dict[str, tuple[float, float, float]]]


class Session(_Record):
    """An entry of environment.json: one start of a program."""

    command: str = ""
    python: str = "?"
    packages: dict[str, str] = {}
    devices: tuple[str, ...] = ()


RecordT = TypeVar("RecordT", bound=_Record)


class Run(NamedTuple):
    """A complete run that pruned weights."""

    folder: Path
    config: Config  # What was asked for; options that did not exist yet have their defaults.
    summary: Summary
    sessions: tuple[Session, ...]  # One for each time that the run was started.
    spectrum: list[run_folder.Row]  # Rows of spectrum.csv; none if the spectrum was not measured.


class FilterRun(NamedTuple):
    """A complete run of `experiments.tpp`, which pruned filters; attributes as those of `Run`."""

    folder: Path
    summary: FilterSummary
    sessions: tuple[Session, ...]


class Found(NamedTuple):
    """What the folders hold."""

    runs: list[Run]  # Runs that pruned weights.
    filter_runs: list[FilterRun]  # Runs that pruned filters.
    incomplete: list[Path]  # Folders of runs that have not finished.
    damaged: list[tuple[Path, str]]  # Folders that cannot be read, and why.

    @property
    def complete(self) -> list[Run | FilterRun]:
        """All complete runs."""
        return [*self.runs, *self.filter_runs]


def find(roots: Sequence[Path]) -> Found:
    """Reads all run folders in and below the roots.

    Raises:
        UserError: a root that is no folder, or no run folder in any of them.
    """
    found = Found([], [], [], [])
    for folder in _folders(roots):
        try:
            config = run_folder.read_config(folder)
            if "data" in config:  # What several runs of experiments.tpp share; no run.
                continue
            if not run_folder.is_complete(folder):
                found.incomplete.append(folder)
            elif "method" in config:
                summary = _check(run_folder.read_summary(folder), FilterSummary, "summary.json")
                found.filter_runs.append(FilterRun(folder, summary, _read_sessions(folder)))
            else:
                found.runs.append(_read_run(folder, config))
        except UserError as error:
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
        for path, children, names in os.walk(root):
            children.sort()
            if {"config.json", "summary.json"} & set(names):
                children.clear()  # The checkpoints of a run hold no other runs.
                folders.setdefault(Path(path).resolve(), Path(path))
    return list(folders.values())


def _read_run(folder: Path, config: Mapping[str, Any]) -> Run:
    spectrum = run_folder.read_table(folder / "spectrum.csv")
    if any(isinstance(value, str) for row in spectrum for value in row.values()):
        raise UserError("spectrum.csv: not all are numbers")
    return Run(
        folder,
        config_lib.from_dict(config, "config.json is not of this version"),
        _check(run_folder.read_summary(folder), Summary, "summary.json"),
        _read_sessions(folder),
        spectrum,
    )


def _read_sessions(folder: Path) -> tuple[Session, ...]:
    path = folder / "environment.json"
    entries = files.read_json(path, list) if path.exists() else []
    return tuple(_check(entry, Session, path.name) for entry in entries)


def _check(value: Any, kind: type[RecordT], name: str) -> RecordT:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{name}: {where}: {first['msg']}") from error
