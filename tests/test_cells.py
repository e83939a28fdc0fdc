"""Cells of a sweep: what their folders say, and how the end of a command is understood."""

import errno
import os
import signal

import pytest

from experiments.shell.errors import UserError
from experiments.storage import locking, run_folder
from experiments.sweep import cells
from experiments.sweep.cells import Cell, Ended


@pytest.fixture
def cell(tmp_path):
    made = Cell("experiments.cifar", ("demo",), tmp_path / "cell", "last_test_accuracy")
    made.folder.mkdir()
    (made.folder / "log.txt").write_text("$ the command\nepoch 1\nerror: the cause\n\n")
    return made


@pytest.mark.parametrize("has_begun", [False, True])
@pytest.mark.parametrize(
    ("code", "state", "error"),
    [
        (75, "interrupted", ""),
        (130, "interrupted", ""),
        (-signal.SIGTERM, "interrupted", ""),
        (2, "failed", "the cause"),
        (-signal.SIGKILL, "failed", "ended by SIGKILL: out of memory?"),
        (-signal.SIGSEGV, "failed", "ended by SIGSEGV"),
        (0, "failed", "its command ended well, and {folder} holds no results: all machines"),
    ],
)
def test_the_end_of_a_command_says_what_became_of_its_cell(cell, has_begun, code, state, error):
    if has_begun:
        run_folder.write_json(cell.folder / "config.json", {})
    status = cells.settle(Ended(cell, code, 1.0))
    assert (status.state, status.accuracy) == (state, None)
    assert status.error.startswith(error.format(folder=cell.folder))
    # It can be tried again.
    later = cells.status(cell)
    assert later == (status if has_begun or state == "failed" else ("new", None, ""))
    if not has_begun:
        run_folder.check(cell.folder, {"resume": True})


def test_a_complete_cell_has_its_accuracy_whatever_the_code(cell):
    assert cells.status(cell).state == "new"
    run_folder.write_json(cell.folder / "config.json", {})
    assert cells.status(cell).state == "interrupted"
    run_folder.write_json(cell.folder / "summary.json", {"last_test_accuracy": 0.75})
    assert cells.settle(Ended(cell, 1, 1.0)) == ("complete", 0.75, "")
    run_folder.write_json(cell.folder / "summary.json", {})
    with pytest.raises(UserError, match="holds no last_test_accuracy"):
        cells.status(cell)


def test_a_cell_that_another_program_is_at_is_running_and_has_not_failed(cell):
    with locking.hold(cell.folder):
        assert cells.settle(Ended(cell, 2, 1.0)).state == "running"
    assert not (cell.folder / "error.txt").exists()
    assert cells.settle(Ended(cell, 1, 0.0, lost="its machine was lost")) == (
        *("failed", None, "its machine was lost"),
    )


def test_cells_of_the_same_job_follow_each_other_in_the_order_of_the_first(cell):
    of_jobs = [cell._replace(job=(job,), arguments=(str(i),)) for i, job in enumerate("baab")]
    assert [each.arguments[0] for each in cells.by_job(of_jobs)] == ["0", "3", "1", "2"]


def test_a_full_disk_fails_the_cell_though_that_cannot_be_written(cell, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "a/file")

    monkeypatch.setattr(os, "fsync", full)
    assert cells.settle(Ended(cell, 74, 1.0)) == ("failed", None, "the cause")
