"""One cell of a sweep: how far its run folder has got, and how a worker process carries it out.

Beside what every run writes (see `run_folder`) the folder of a cell holds

    log.txt      what the program printed; locked by the process that is at the cell
    error.txt    why the cell failed; gone as soon as it is tried again
"""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
from pathlib import Path
from typing import Literal, NamedTuple

from experiments.cifar import config as config_lib
from experiments.cifar import program as cifar
from experiments.cifar.config import Config, SearchConfig
from experiments.cifar.job import Job, make_job
from experiments.shell import console as screen
from experiments.shell import errors
from experiments.shell.configuration import to_dict
from experiments.shell.errors import UserError
from experiments.storage import files, locking, run_folder

State = Literal["new", "interrupted", "running", "failed", "complete"]


class Status(NamedTuple):
    """How far a cell has got.

    Attributes:
        state: `running` if a process is at it.
        accuracy: on the test images after the last epoch, if complete.
        error: what went wrong, if failed; the first line says it in short.
    """

    state: State
    accuracy: float | None = None
    error: str = ""


def folder(config: Config) -> Path:
    """Returns the run folder of a cell."""
    return config.runs_dir / config_lib.run_name(config)


def status(config: Config) -> Status:
    """Looks into the run folder of a cell."""
    path = folder(config)
    if run_folder.is_complete(path):
        accuracy = run_folder.read_summary(path).get("last_test_accuracy")
        if not isinstance(accuracy, int | float):
            raise UserError(f"{path / 'summary.json'} holds no accuracy. Restore it")
        return Status("complete", accuracy)
    if not (path / "config.json").exists():
        return Status("new")
    if locking.is_held(path) or locking.is_held(path, "log.txt"):
        return Status("running")
    if (path / "error.txt").exists():
        error = (path / "error.txt").read_text(encoding="utf-8", errors="replace")
        return Status("failed", error=error.strip())
    return Status("interrupted")


def fail(config: Config, error: str) -> Status:
    """Records that a cell failed, in its run folder (unless the disk is full)."""
    try:
        files.write_text(_make_folder(config) / "error.txt", error.strip() + "\n")
    except OSError as failure:
        if not errors.disk_full(failure):
            raise
    return Status("failed", error=error.strip())


def _make_folder(config: Config) -> Path:
    path = folder(config)
    path.mkdir(parents=True, exist_ok=True)
    if not (path / "config.json").exists():
        run_folder.write_json(path / "config.json", to_dict(config))
    return path


# -- In a worker ---------------------------------------------------------------------------------


def carry_out(config: Config) -> Status:
    """Runs a cell, on from where it stopped; what goes wrong is recorded and ends only the cell.

    Standard output and error of the process go to the cell's log from here on.
    """
    path = _make_folder(config)
    with locking.try_lock(path / "log.txt") as is_ours:
        if not is_ours:
            return Status("running")
        if not run_folder.is_complete(path):
            _redirect_output(path / "log.txt")
            (path / "error.txt").unlink(missing_ok=True)
            try:
                job = _job(config)
                cifar.run(dataclasses.replace(config, resume=True), screen.open_console(), job=job)
            except errors.Held:
                return Status("running")
            except (UserError, errors.RunFailed) as error:
                return fail(config, " ".join(str(error).split()))
            except Exception as error:
                if message := errors.disk_full(error):
                    return fail(config, message)
                details = traceback.format_exc()
                print(details, file=sys.stderr, flush=True)
                return fail(config, f"{_one_line(error)}\n\n{details}")
    return status(config)


def group(config: Config) -> Config:
    """Returns what cells have in common that share a `Job` and so the compiled steps in it."""
    search = SearchConfig(exclude=config.search.exclude)
    return dataclasses.replace(
        config, search=search, seed=0, label="", compare=(), runs_dir=Path(), resume=False
    )


_jobs: dict[Config, Job] = {}


def _job(config: Config) -> Job:
    """Makes the job of a cell, unless that of the last cell will do. Only one: they are large."""
    key = group(config)
    if key not in _jobs:
        _jobs.clear()
        _jobs[key] = make_job(config)
    return _jobs[key]


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _redirect_output(path: Path) -> None:
    """Sends what this process writes, libraries in C++ included, to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("a", encoding="utf-8") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
