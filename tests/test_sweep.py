"""The sweep, as a user runs it: once for real, and with a stand-in for the cells' work."""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.cifar import config as config_lib
from experiments.cifar.job import init_variables, make_job
from experiments.cifar.presets import PRESETS
from experiments.processes import workers
from experiments.shell import errors, interruption
from experiments.shell.configuration import to_dict
from experiments.storage import run_folder
from experiments.sweep import cells
from experiments.sweep import program as sweep
from experiments.sweep.options import parse, plan
from ntksap_jax import masks

GRID = """
preset = "demo"
runs_dir = "runs"
[set]
model = "mlp"
epochs = 1
warmup_epochs = 0
[grid]
criterion = ["magnitude", "random"]
density = [0.1]
seed = [0, 1]
"""
NAMES = [f"digits-mlp-{name}-0.1-seed{seed}" for name in ("magnitude", "random") for seed in (0, 1)]


@pytest.fixture
def grid_file(tmp_path, monkeypatch):
    path = tmp_path / "table.toml"
    path.write_text(GRID)
    monkeypatch.chdir(tmp_path)
    return path


def run(*arguments):
    """Runs the program; returns its exit code."""
    try:
        sweep.main(list(map(str, arguments)))
    except SystemExit as stop:
        return stop.code
    return 0


def lines(text, start):
    return [line for line in text.splitlines() if line.startswith(start)]


# -- For real ------------------------------------------------------------------------------------


def test_a_grid_is_carried_out_and_what_is_done_is_skipped(grid_file, capsys):
    runs = Path("runs")

    assert run(grid_file, "--seed", 0) == 0
    assert lines(capsys.readouterr().out, "2 cells: 2 complete")

    # A cell that was interrupted after its search, and whose mask is gone.
    [config] = plan(parse([str(grid_file), "--criterion", "random", "--seed", "1"]))
    broken = cells.folder(config)
    assert broken == runs / NAMES[3]
    broken.mkdir()
    run_folder.write_json(broken / "config.json", to_dict(config))
    (broken / "mask.sha256").write_text("0" * 64)
    assert run(grid_file, "--list") == 0
    listed = capsys.readouterr().out.splitlines()
    states = ["complete", "new", "complete", "interrupted"]
    assert [line.split()[:2] for line in listed[:-1]] == [
        [state, name] for state, name in zip(states, NAMES, strict=True)
    ]
    assert listed[-1] == "4 cells: 2 complete, 1 new, 1 interrupted"

    before = {path: path.stat().st_mtime_ns for path in runs.glob("*-seed0/*.csv")}
    assert len(before) == 4
    assert run(grid_file, "--workers", 2) == 1
    assert before == {path: path.stat().st_mtime_ns for path in before}
    shown = capsys.readouterr()
    assert "--retry-failed" in shown.err
    assert shown.err.count("\n") == 1
    progress = shown.out.splitlines()[2:4]
    assert [line.split()[0] for line in progress] == ["1/2", "2/2"]
    assert progress[-1].endswith("; 0 left")
    assert lines(shown.out, "4 cells: 3 complete, 1 failed")
    [failure] = lines(shown.out, "failed: ")
    assert failure.startswith(
        f"failed: {NAMES[3]}: cannot read the mask {broken / 'mask.safetensors'}"
    )
    assert (broken / "error.txt").read_text().startswith("cannot read the mask")

    summary = json.loads((runs / NAMES[1] / "summary.json").read_text())
    [line] = [line for line in progress if NAMES[1] in line]
    assert f"  {summary['last_test_accuracy']:.2%}  " in line
    assert (runs / NAMES[1] / "training.png").exists()
    assert "epoch   1/1" in (runs / NAMES[1] / "log.txt").read_text()

    # Each seed has its own weights: the masks are those of their largest entries.
    job = make_job(config)
    for seed in (0, 1):
        params = init_variables(dataclasses.replace(config, seed=seed), job)["params"]
        sizes = {path: np.abs(leaf) for path, leaf in masks.leaf_paths(params).items()}
        mask = masks.leaf_paths(masks.load(runs / NAMES[seed] / "mask.safetensors", like=params))
        threshold = np.sort(np.concatenate([sizes[path].ravel() for path in mask]))[-5020]
        for path, keep in mask.items():
            np.testing.assert_array_equal(keep, sizes[path] >= threshold)


# -- With a stand-in for the work ----------------------------------------------------------------


def stand_in(config):
    """What the workers do in the tests below, depending on the cell."""
    path = cells.folder(config)
    path.mkdir(parents=True, exist_ok=True)
    run_folder.write_json(path / "config.json", to_dict(config))
    if config.label == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.label == "ctrl-c":
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)
    if config.label == "preempted" and not (path / "saved").exists():
        with interruption.deferred() as stop_requested:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop_requested()
            (path / "saved").touch()
            raise errors.Preempted
    if config.label == "all-preempted":
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)
    if config.label == "fails" and (path.parent / "cause").exists():
        return cells.fail(config, "the cause")
    (path / "error.txt").unlink(missing_ok=True)
    run_folder.write_json(path / "summary.json", {"last_test_accuracy": 0.5})
    return cells.status(config)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(cells, "carry_out", stand_in)
    # A shell that starts the tests in the background has them, and what they start, ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.long
def test_a_killed_worker_costs_its_cell_and_the_grid_goes_on(quick, tmp_path, capsys):
    options = ["demo", "--label", "a", "killed", "b", "--runs-dir", tmp_path]
    assert run(*options) == 1
    out = capsys.readouterr().out
    assert lines(out, "3 cells: 2 complete, 1 failed")
    [failure] = lines(out, "failed: ")
    assert "demo" not in failure
    assert "-killed-seed0: the worker process was ended by SIGKILL: out of memory?" in failure
    # Not tried again unasked.
    assert run(*options) == 1
    assert lines(capsys.readouterr().out, "3 cells: 2 complete, 1 failed")


@pytest.mark.long
def test_what_failed_is_listed_and_retried_on_request(quick, tmp_path, capsys, monkeypatch):
    options = ["demo", "--label", "a", "fails", "b", "--runs-dir", tmp_path]
    (tmp_path / "cause").touch()
    assert run(*options) == 1
    out = capsys.readouterr().out
    assert lines(out, "3 cells: 2 complete, 1 failed")
    assert lines(out, "failed: digits-resnet8-ntk_sap-0.05-fails-seed0: the cause ")

    (tmp_path / "cause").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(workers, "run", lambda *args, **kwargs: pytest.fail("nothing to do"))
        assert run(*options) == 1
    shown = capsys.readouterr()
    assert lines(shown.out, "failed: digits-resnet8-ntk_sap-0.05-fails-seed0: the cause ")
    assert shown.err.rstrip().endswith("--retry-failed")

    assert run(*options, "--retry-failed") == 0
    out = capsys.readouterr().out
    assert lines(out, "1 to do by 1 worker")
    assert lines(out, "3 cells: 3 complete")
    assert run(*options) == 0
    assert capsys.readouterr().out == "3 cells: 3 complete\n"


def test_an_interruption_says_how_to_go_on_and_loses_nothing_that_was_done(quick, tmp_path, capsys):
    options = ["demo", "--label", "a", "ctrl-c", "b", "--runs-dir", str(tmp_path)]
    assert run(*options) == 130
    shown = capsys.readouterr()
    assert shown.err == (
        f"interrupted; to go on where it stopped: python -m experiments.sweep {' '.join(options)}\n"
    )
    assert run(*options, "--list") == 0
    states = [line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert states == ["complete", "interrupted", "new"]


@pytest.mark.long
def test_a_worker_that_is_preempted_leaves_its_cell_interrupted_and_the_grid_goes_on(
    quick, tmp_path, capsys
):
    options = ["demo", "--label", "a", "preempted", "b", "--runs-dir", str(tmp_path)]
    assert run(*options) == 75
    shown = capsys.readouterr()
    assert "-preempted-seed0  preempted, and saved  " in shown.out
    assert lines(shown.out, "3 cells: 2 complete, 1 interrupted")
    assert shown.err == (
        "preempted, all is saved; to go on where it stopped: "
        f"python -m experiments.sweep {' '.join(options)}\n"
    )
    assert run(*options) == 0
    assert lines(capsys.readouterr().out, "3 cells: 3 complete")


@pytest.mark.long
def test_a_sweep_that_is_preempted_has_its_workers_save(quick, tmp_path, capsys):
    options = ["demo", "--label", "a", "all-preempted", "b", "--runs-dir", str(tmp_path)]
    assert run(*options) == 75
    assert capsys.readouterr().err.startswith("preempted, all is saved; to go on")
    assert run(*options, "--list") == 0
    states = [line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert states == ["complete", "interrupted", "new"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_cell_whose_folder_was_made_otherwise_is_a_mistake_before_anything_runs(
    quick, tmp_path, capsys
):
    options = ["demo", "--seed", "0", "1", "--runs-dir", tmp_path]
    assert run(*options) == 0
    capsys.readouterr()
    assert run(*options, "--epochs", 3) == 2
    error = capsys.readouterr().err
    assert "was made with another configuration (epochs: 15 -> 3)" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("demoo", "unknown grid or preset 'demoo'. Did you mean demo?"),
        ("no.toml", "cannot read the grid file no.toml: No such file"),
        ("demo", "demo is a preset, and the grid is empty"),
        ("--workers 2", "a grid comes first, then flags; got '--workers'"),
        ("demo --sed 0", "unknown flag --sed. Did you mean --seed?"),
        ("demo --seed x", "error: --seed: Could not find valid parse for arguments: ['x']"),
        ("demo --seed 0 --workers 0", "--workers: expected an integer of at least 1, got 0"),
        ("demo --criterion random rnd", "unknown criterion 'rnd'. Did you mean random?"),
        ("demo --density 0.1 2", "--density: expected a fraction in (0, 1], got 2"),
        ("demo --epochs 2 3", "two cells go to the same run folder digits-resnet8-ntk_sap"),
        ("digits --density 0.5", "--density 0.5: the grid digits has no such cell"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(line, message, capsys):
    assert run(*line.split(), "--list") == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_no_argument_at_all_is_a_mistake_but_help_is_none(capsys):
    for arguments, code in ([], 2), (["--help"], 0):
        assert run(*arguments) == code
        assert "--retry-failed" in capsys.readouterr().out


def test_flags_of_fields_that_hold_several_values_give_one_of_them(tmp_path, capsys):
    options = ["demo", "--drop-epochs", 5, 7, "--label", "a", "--runs-dir", tmp_path]
    assert run(*options, "--list") == 0
    assert capsys.readouterr().out.endswith("1 cell: 1 new\n")


def test_the_time_left_goes_by_cells_of_the_same_kind():
    _, demo = PRESETS["demo"]
    fast, slow, other = (config_lib.with_criterion(demo, name) for name in ("random", "px", "snip"))
    again = [dataclasses.replace(config, seed=1) for config in (fast, slow, other)]
    assert sweep.time_left(again, {}, 1) is None
    # random 10 s, px 40 s, and the mean of the two for snip, of which none is done.
    assert sweep.time_left(again, {fast: 10.0, slow: 40.0}, 1) == 10 + 40 + 25
    assert sweep.time_left(again, {fast: 10.0, slow: 40.0}, 3) == 25
