"""The sweep, as a user runs it: once for real, and with a stand-in for the cells' work."""

import dataclasses
import json
import signal
from pathlib import Path

import numpy as np
import pytest

from experiments.cifar.job import init_variables, make_job
from experiments.cifar.presets import PRESETS
from experiments.shell import command_line
from experiments.shell.configuration import to_dict
from experiments.storage import run_folder
from experiments.sweep import grid, programs
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


@pytest.mark.long
def test_a_grid_is_carried_out_and_what_is_done_is_skipped(grid_file, capsys):
    runs = Path("runs")

    assert run(grid_file, "--seed", 0) == 0
    assert lines(capsys.readouterr().out, "2 cells: 2 complete")

    # A cell that was interrupted after its search, and whose mask is gone.
    [cell] = plan(*parse([str(grid_file), "--criterion", "random", "--seed", "1"]))
    config = command_line.parse(cell.arguments, PRESETS, prog="")
    broken = cell.folder
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
    assert "--retry-failed" in shown.err and shown.err.count("\n") == 1
    failure = f"{NAMES[3]}: cannot read the mask {broken / 'mask.safetensors'}"
    assert lines(shown.out, f"failed: {failure}")
    assert lines(shown.out, "4 cells: 3 complete, 1 failed")
    assert (broken / "error.txt").read_text().startswith("cannot read the mask")
    accuracy = json.loads((runs / NAMES[1] / "summary.json").read_text())["last_test_accuracy"]
    progress = lines(shown.out, "1/2") + lines(shown.out, "2/2")
    assert any(f"{NAMES[1]}  {accuracy:.2%}  " in line for line in progress)
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


# -- With a stand-in for the program -------------------------------------------------------------

STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path

def main(arguments):
    after = dict(zip(arguments, arguments[1:]))
    label, place = after["--label"], Path(after["--runs-dir"])
    [folder] = place.glob(f"*-{label}-seed0")
    assert arguments[-1] == "--resume"
    (folder / "config.json").write_text((place / f"{label}.json").read_text())
    if label in ("ctrl-c", "all-preempted"):
        number = signal.SIGINT if label == "ctrl-c" else signal.SIGTERM
        os.kill(os.getppid(), number)
        time.sleep(60)
    if label == "preempted" and not (place / "saved").exists():
        (place / "saved").touch()
        sys.exit(75)
    if label == "fails" and (place / "cause").exists():
        print("error: the cause", file=sys.stderr)
        sys.exit(2)
    (folder / "summary.json").write_text(json.dumps({"last_test_accuracy": 0.5}))
"""


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """Has `demo` mean a stand-in; returns a function that makes a sweep's command line."""
    code, runs = tmp_path / "code" / "stand_in", tmp_path / "runs"
    code.mkdir(parents=True)
    runs.mkdir()
    (code / "program.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(code.parent))
    program = programs.CIFAR._replace(module="stand_in")
    monkeypatch.setitem(programs.PRESETS, "demo", (program, "demo"))

    def command(*labels):
        options = ["demo", "--label", *labels, "--runs-dir", str(runs)]
        for label, cell in zip(labels, plan(*parse(options)), strict=True):
            config = command_line.parse(cell.arguments, PRESETS, prog="")
            run_folder.write_json(runs / f"{label}.json", to_dict(config))
        return options

    # A shell that starts the tests in the background has them, and what they start, ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield command
    signal.signal(signal.SIGINT, before)


def states(options, capsys):
    capsys.readouterr()
    assert run(*options, "--list") == 0
    return [line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]]


@pytest.mark.long
@pytest.mark.parametrize(
    ("label", "code", "state", "said"),
    [
        ("fails", 1, "failed", "the cause"),
        ("preempted", 75, "interrupted", "preempted, and saved"),
    ],
)
def test_what_goes_wrong_costs_one_cell_and_can_be_tried_again(
    label, code, state, said, quick, tmp_path, capsys
):
    (tmp_path / "runs" / "cause").touch()
    options = quick("a", label, "b")
    assert run(*options) == code
    shown = capsys.readouterr()
    assert lines(shown.out, f"3 cells: 2 complete, 1 {state}")
    [line] = [line for line in shown.out.splitlines() if f"-{label}-seed0  " in line]
    assert said in line
    again = f"python -m experiments.sweep {' '.join(options)}"
    if state == "interrupted":
        assert shown.err == f"preempted, all is saved; to go on where it stopped: {again}\n"
    else:
        assert shown.err == f"to try the failed ones again: {again} --retry-failed\n"
        [failure] = lines(shown.out, "failed: ")
        assert f"-{label}-seed0: {said} (more in " in failure
        # Not tried again unasked.
        assert run(*options) == 1
        assert "to do" not in capsys.readouterr().out
        (tmp_path / "runs" / "cause").unlink()
        options.append("--retry-failed")
    assert run(*options) == 0
    out = capsys.readouterr().out
    assert lines(out, "1 to do by 1 worker")
    assert lines(out, "3 cells: 3 complete")


@pytest.mark.long
@pytest.mark.parametrize(
    ("label", "code", "said"),
    [("ctrl-c", 130, "interrupted"), ("all-preempted", 75, "preempted, all is saved")],
)
def test_an_interruption_says_how_to_go_on_and_loses_nothing_that_was_done(
    label, code, said, quick, capsys
):
    options = quick("a", label, "b")
    assert run(*options) == code
    assert capsys.readouterr().err == (
        f"{said}; to go on where it stopped: python -m experiments.sweep {' '.join(options)}\n"
    )
    assert states(options, capsys) == ["complete", "interrupted", "new"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_cell_whose_folder_was_made_otherwise_is_a_mistake_before_anything_runs(tmp_path, capsys):
    options = ["demo", "--seed", "0", "--runs-dir", str(tmp_path)]
    [cell] = plan(*parse(options))
    run_folder.make(cell.folder)
    _, demo = PRESETS["demo"]
    run_folder.write_json(cell.folder / "config.json", to_dict(demo))
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
        ("demo --seed 0 --workers 0", "--workers: expected greater than or equal to 1, got 0"),
        ("demo --density 0.1 2", "--density: expected less than or equal to 1, got"),
        ("demo --epochs 2 3", "two cells go to the same run folder digits-resnet8-ntk_sap"),
        ("digits --density 0.5", "--density 0.5: the grid digits has no such cell"),
        ("demo --seed 0 --cluster auto --workers 2", "--workers: with --cluster, as many cells"),
        ("demo --seed 0 --cpus-per-cell 0", "--cpus-per-cell: expected greater than 0, got 0"),
        ("demo --seed 0 --gpus-per-cell 1.5", "--gpus-per-cell: expected a whole number or a"),
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
    arguments = ["demo", "--criterion", "random", "px", "snip", "--seed", "0", "1"]
    cells = plan(*parse(arguments))
    (fast, slow, _), again = cells[::2], cells[1::2]
    assert sweep.time_left(again, {}, 1) is None
    # random 10 s, px 40 s, and the mean of the two for snip, of which none is done.
    assert sweep.time_left(again, {fast: 10.0, slow: 40.0}, 1) == 10 + 40 + 25
    assert sweep.time_left(again, {fast: 10.0, slow: 40.0}, 3) == 25


# -- Sweeps of experiments.tpp -------------------------------------------------------------------

TPP_GRID = """
preset = "tpp:demo"
runs_dir = "runs"
[set]
pretrain_epochs = 1
pretrain_drop_epochs = []
finetune_epochs = 1
finetune_drop_epochs = []
latency_repeats = 3
jsv_images = 10
[grid]
method = ["dense", "l1"]
ratio = [0.8]
"""


@pytest.mark.long
def test_a_grid_of_tpp_is_carried_out_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("table.toml").write_text(TPP_GRID)
    for _ in range(2):
        # Both start from the same dense network: one trains it, and the other waits for it.
        assert run("table.toml", "--workers", 2) == 0
        assert lines(capsys.readouterr().out, "2 cells: 2 complete")
    assert run("table.toml", "--method", "l1", "--list") == 0
    summary = json.loads(Path("runs/digits-mlp-l1-ratio0.8-lr0.01-seed0/summary.json").read_text())
    assert capsys.readouterr().out.splitlines()[0] == (
        f"complete     digits-mlp-l1-ratio0.8-lr0.01-seed0  {summary['last_accuracy']:.2%}"
    )


@pytest.mark.parametrize("name", [*grid.NAMED, "mlp-linear-short", "tpp:demo"])
def test_the_command_of_a_cell_says_all_that_its_grid_does(name):
    words = [] if name in grid.NAMED else ["--seed", "0", "1", "--label", "-x"]
    cells = plan(*parse([name, *words]))
    program, _ = programs.PRESETS.get(name, (programs.CIFAR, ""))
    for cell in (cells[0], cells[len(cells) // 2], cells[-1]):
        config = command_line.parse(cell.arguments, program.presets, prog="")
        assert program.alone(config) == config
        assert config.resume
        assert config.runs_dir / program.run_name(config) == cell.folder
