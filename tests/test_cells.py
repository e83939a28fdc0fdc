"""Cells of a sweep: what their folders say, and what they share."""

import dataclasses
import errno
import fcntl
import os
from pathlib import Path

import pytest

from experiments.cifar import config as config_lib
from experiments.cifar import program as cifar
from experiments.cifar.presets import PRESETS
from experiments.shell import errors
from experiments.shell.configuration import to_dict
from experiments.shell.errors import UserError
from experiments.storage import locking, run_folder
from experiments.sweep import cells


@pytest.fixture
def config(tmp_path):
    _, demo = PRESETS["demo"]
    return config_lib.with_criterion(
        dataclasses.replace(demo, runs_dir=tmp_path, resume=True), "random"
    )


@pytest.fixture
def quiet(monkeypatch):
    """Keeps the output of this process where it is, and makes no job."""
    monkeypatch.setattr(cells, "_redirect_output", lambda path: None)
    monkeypatch.setattr(cells, "_job", lambda config: None)


def complete(config, console, *, job):
    run_folder.write_json(cells.folder(config) / "summary.json", {"last_test_accuracy": 0.75})


def test_the_state_of_a_cell_is_what_its_folder_says(config, quiet, monkeypatch):
    assert cells.status(config) == ("new", None, "")

    def interrupted(*args, **kwargs):
        assert cells.status(config).state == "running"
        raise KeyboardInterrupt

    monkeypatch.setattr(cifar, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cells.carry_out(config)
    assert cells.status(config) == ("interrupted", None, "")

    def fails(*args, **kwargs):
        raise UserError("the cause,\n  in two lines")

    monkeypatch.setattr(cifar, "run", fails)
    failed = ("failed", None, "the cause, in two lines")
    assert cells.carry_out(config) == failed
    assert cells.status(config) == failed

    monkeypatch.setattr(cifar, "run", complete)
    assert cells.carry_out(config) == ("complete", 0.75, "")
    assert cells.status(config) == ("complete", 0.75, "")
    assert not (cells.folder(config) / "error.txt").exists()


def test_an_unforeseen_error_is_recorded_with_its_traceback(config, quiet, monkeypatch):
    def fails(*args, **kwargs):
        raise ZeroDivisionError("division by\nzero")

    monkeypatch.setattr(cifar, "run", fails)
    status = cells.carry_out(config)
    assert status.state == "failed"
    assert status.error.startswith("ZeroDivisionError: division by zero\n\nTraceback")
    assert cells.status(config) == status


def test_a_cell_that_another_process_is_at_is_left_alone(config, quiet, monkeypatch):
    monkeypatch.setattr(cifar, "run", complete)
    folder = cells.folder(config)
    folder.mkdir()
    with (folder / "log.txt").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert cells.carry_out(config) == ("running", None, "")
        assert cells.status(config).state == "running"
        assert not run_folder.is_complete(folder)
    assert cells.carry_out(config).state == "complete"


def test_a_cell_that_another_program_is_at_is_running_too(config, quiet, monkeypatch):
    folder = cells._make_folder(config)
    with locking.hold(folder):
        assert cells.status(config).state == "running"

    def held(*args, **kwargs):
        raise errors.Held("in use")

    monkeypatch.setattr(cifar, "run", held)
    assert cells.carry_out(config) == ("running", None, "")
    assert not (folder / "error.txt").exists()


def test_a_full_disk_fails_the_cell_also_when_that_cannot_be_written(config, quiet, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "a/file")

    monkeypatch.setattr(cifar, "run", full)
    status = cells.carry_out(config)
    assert status.state == "failed"
    assert status.error.startswith("the disk is full: No space left on device (a/file)")
    monkeypatch.setattr(os, "fsync", full)
    assert cells.fail(config, "the cause") == ("failed", None, "the cause")


def test_a_cell_that_failed_before_it_began_can_be_tried_again(config, quiet, monkeypatch):
    cells.fail(config, "the worker process was ended by SIGKILL: out of memory?")
    assert cells.status(config).state == "failed"
    run_folder.check(cells.folder(config), to_dict(config))
    monkeypatch.setattr(cifar, "run", complete)
    assert cells.carry_out(config).state == "complete"


def test_cells_share_a_job_unless_data_model_or_training_differ(config, monkeypatch):
    monkeypatch.setattr(cells, "make_job", lambda config: [config])
    job = cells._job(config)
    for same in (
        {"seed": 1},
        {"label": "x", "runs_dir": Path("elsewhere")},
        {"search": dataclasses.replace(config.search, criterion="ntk_sap", density=0.3, rounds=2)},
    ):
        assert cells._job(dataclasses.replace(config, **same)) is job
    for other in (
        {"model": "mlp"},
        {"dataset": "cifar10"},
        {"training": dataclasses.replace(config.training, epochs=3)},
    ):
        changed = dataclasses.replace(config, **other)
        assert cells._job(changed) == [changed]
        assert len(cells._jobs) == 1
