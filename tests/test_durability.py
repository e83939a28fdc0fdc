"""Nothing is lost: killed, preempted, out of disk, or with numbers that are not finite."""

import errno
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import kill_harness
import numpy as np
import pytest
from damage import ORBAX_LEAVES_SOMETHING, collected_here, damage  # noqa: F401
from fake_runs import blank_pictures, one_device  # noqa: F401
from kill_harness import rows
from test_training import Linear, start

from experiments.cifar import factories, search_files
from experiments.cifar import program as cifar
from experiments.shell import errors
from experiments.storage import locking, run_folder
from experiments.training import checkpoints, loop
from experiments.training.checkpoints import Progress
from ntksap_jax import masks

pytestmark = ORBAX_LEAVES_SOMETHING
OPTIONS = [
    *("demo", "--model", "mlp", "--criterion", "random", "--density", "0.1", "--rounds", "1"),
    *("--epochs", "3", "--compare", "--runs-dir"),
]
NAME = "digits-mlp-random-0.1-seed0"


def fail(capfd, *arguments, other_lines=False):
    """Runs the program, which must end with one line; returns its exit code and the line."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        cifar.main(list(map(str, arguments)))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 or other_lines, lines
    return stop.value.code, lines[-1]


def before_call(monkeypatch, module, name, call, action):
    """Has `action()` happen before the `call`-th call of a function."""
    original, calls = getattr(module, name), []

    def patched(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            action()
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, patched)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    runs = tmp_path_factory.mktemp("undisturbed")
    cifar.main([*OPTIONS, str(runs)])
    return runs / NAME


def assert_same(folder, other):
    for name in ("metrics.csv", "search.csv"):
        assert rows(folder / name) == rows(other / name)
    digests = [(each / "mask.sha256").read_text() for each in (folder, other)]
    assert digests[0] == digests[1]
    accuracies = [run_folder.read_summary(each)["last_test_accuracy"] for each in (folder, other)]
    assert accuracies[0] == accuracies[1]


# -- Killed --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The runs of a program that nobody killed."""
    runs = tmp_path_factory.mktemp("alone")
    kill_harness.finish(kill_harness.start(runs), runs)
    return runs


@pytest.mark.long
def test_killed_at_random_moments_the_result_is_that_of_an_undisturbed_run(tmp_path, alone):
    signals = [signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]
    kill_harness.kill_until(random.Random(0), tmp_path, signals, kill_harness.result(alone))


# -- Preempted -----------------------------------------------------------------------------------


def test_preempted_in_the_search_it_is_saved_after_the_round(tmp_path, monkeypatch, capfd):
    options = [*OPTIONS, str(tmp_path), "--criterion", "synflow", "--rounds", "3"]
    with monkeypatch.context() as patch:
        before_call(patch, search_files, "round_row", 2, terminate)
        code, error = fail(capfd, *options)
    assert code == 75
    assert error.startswith("preempted, all is saved; to go on where it stopped: python -m exp")
    assert error.endswith("--resume")
    [folder] = tmp_path.iterdir()
    assert len(rows(folder / "search.csv")) == 2
    cifar.main([*options, "--resume"])
    assert [row["round"] for row in rows(folder / "search.csv")] == [1, 2, 3]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_preempted_in_training_it_is_saved_there(undisturbed, tmp_path, monkeypatch, capfd):
    make_job, step = cifar.make_job, 44  # The last of an epoch: the evaluation comes first.

    def make(config):
        job = make_job(config)

        def terminated(key, state, *batch):
            if int(state.step) + 1 == step:
                terminate()
            return job.train_step(key, state, *batch)

        return job._replace(train_step=terminated)

    with monkeypatch.context() as patch:
        patch.setattr(cifar, "make_job", make)
        assert fail(capfd, *OPTIONS, tmp_path)[0] == 75
    with checkpoints.open_manager(tmp_path / NAME / "checkpoints") as manager:
        assert manager.latest_step() == step
    cifar.main([*OPTIONS, str(tmp_path), "--resume"])
    assert_same(tmp_path / NAME, undisturbed)


def test_within_an_epoch_checkpoints_are_saved_now_and_then(undisturbed, tmp_path, monkeypatch):
    steps = []
    save = checkpoints.save

    def recording(manager, step, *args, **kwargs):
        steps.append(step)
        save(manager, step, *args, **kwargs)

    monkeypatch.setattr(checkpoints, "save", recording)
    clock = SimpleNamespace(monotonic=itertools.count().__next__, perf_counter=time.perf_counter)
    monkeypatch.setattr(loop, "time", clock)
    cifar.main([*OPTIONS, str(tmp_path), "--save-minutes", "0.15"])
    # The clock goes on by a second at each look, one look a step; and 9 seconds are 0.15 minutes.
    assert steps == [9, 18, 22, 31, 40, 44, 53, 62, 66]
    assert_same(tmp_path / NAME, undisturbed)


def test_a_damaged_mask_is_made_again_while_the_rounds_are_there(
    undisturbed, tmp_path, monkeypatch, capfd
):
    with monkeypatch.context() as patch:
        before_call(patch, checkpoints, "save", 2, terminate)
        assert fail(capfd, *OPTIONS, tmp_path)[0] == 75
    folder = tmp_path / NAME
    assert [path.name for path in (folder / "search").glob("*.safetensors")] == [
        "round-1.safetensors"
    ]
    (folder / "mask.safetensors").write_bytes(b"damaged")
    cifar.main([*OPTIONS, str(tmp_path), "--resume"])
    assert "warning: the mask is made again from the last rounds" in capfd.readouterr().out
    assert_same(folder, undisturbed)
    assert not (folder / "search").exists()


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    """The run folder of a run that was preempted after two epochs."""
    runs = tmp_path_factory.mktemp("half_done")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        before_call(patch, checkpoints, "save", 2, terminate)
        cifar.main([*OPTIONS, str(runs)])
    return runs / NAME


@pytest.mark.parametrize("seed", range(2))
def test_damage_anywhere_is_recovered_from_or_an_error(
    undisturbed, half_done, tmp_path, seed, capfd
):
    shutil.copytree(half_done, tmp_path / NAME)
    damage(random.Random(seed), tmp_path / NAME)
    arguments = [*OPTIONS, str(tmp_path), "--resume"]
    try:
        cifar.main(arguments)
    except SystemExit as stop:
        error = capfd.readouterr().err
        assert stop.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    else:
        assert_same(tmp_path / NAME, undisturbed)


# -- Two programs --------------------------------------------------------------------------------


def test_two_programs_cannot_write_into_one_run_folder(undisturbed, capfd):
    with locking.hold(undisturbed):
        code, error = fail(capfd, *OPTIONS, undisturbed.parent, "--resume")
    assert code == 2
    assert f"{undisturbed} is in use by process {os.getpid()} on " in error


# -- A full disk ---------------------------------------------------------------------------------


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/file")


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        (masks, "save", 1),  # The mask after the round.
        (run_folder, "write_table", 4),  # The second epoch, after the rounds' table, written twice.
        (checkpoints, "save", 2),
        (run_folder, "write_picture", 1),
    ],
)
def test_a_full_disk_ends_with_one_line_and_the_run_goes_on_later(
    undisturbed, tmp_path, monkeypatch, capfd, module, name, call
):
    with monkeypatch.context() as patch:
        before_call(patch, module, name, call, full)
        code, error = fail(capfd, *OPTIONS, tmp_path)
    assert code == 74
    assert error.startswith("error: the disk is full: No space left on device (a/file). What was")
    assert "make room; to go on where it stopped: python -m experiments.cifar" in error
    cifar.main([*OPTIONS, str(tmp_path), "--resume"])
    assert_same(tmp_path / NAME, undisturbed)


def test_a_checkpoint_that_the_system_refuses_to_write_leaves_the_one_before(tmp_path, capfd):
    state, *_ = start(Linear())
    large = state._replace(params=jax.random.normal(jax.random.key(0), (10**6,)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with checkpoints.open_manager(tmp_path) as manager:
        checkpoints.save(manager, 1, large, Progress(), run="run")
    # Files of at most 100 kB: the system fails writes as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(Exception) as error, checkpoints.open_manager(tmp_path) as manager:
            checkpoints.save(manager, 2, large, Progress(), run="run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert errors.disk_full(error.value).startswith("the disk is full: File too large")
    assert capfd.readouterr().err == ""
    with checkpoints.open_manager(tmp_path) as manager:
        found = checkpoints.restore_last(manager, large, run="run", say=pytest.fail)
        np.testing.assert_array_equal(found[0].params, large.params)
        assert manager.all_steps() == [1]
        checkpoints.save(manager, 2, large, Progress(), run="run")


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=170k tmpfs "$1" || exit 99
runs="$1"; shift
"$@" "$runs"; code=$?
mount -o remount,size=50m "$runs"
"$@" "$runs" || exit 98
cp -r "$runs" "$runs.kept"
exit $code
"""


@pytest.mark.long
def test_on_a_small_disk_the_program_stops_and_goes_on_when_there_is_room(tmp_path, alone):
    runs = tmp_path / "runs"
    runs.mkdir()
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK, "sh", runs, *kill_harness.COMMAND],
        cwd=kill_harness.ROOT,
        capture_output=True,
        text=True,
    )
    if ended.returncode == 99 or "unshare" in ended.stderr:
        pytest.skip(f"no file system can be mounted here: {ended.stderr.strip()}")
    assert ended.returncode == 74, ended.stderr
    assert ended.stderr.startswith("error: the disk is full: No space left on device")
    assert ended.stderr.count("\n") == 1
    assert kill_harness.result(tmp_path / "runs.kept") == kill_harness.result(alone)


def test_other_errors_are_not_taken_for_a_full_disk():
    assert errors.disk_full(OSError(errno.EACCES, "Permission denied")) is None
    assert errors.disk_full(ValueError("no space")) is None


# -- Other trainings, whose steps are compiled anew ----------------------------------------------


def test_trained_weights_are_those_of_the_last_epoch_or_an_error(undisturbed, tmp_path, capfd):
    source = tmp_path / "source"
    shutil.copytree(undisturbed, source)
    options = [*OPTIONS, tmp_path / "runs", "--weights", source]
    for path in (source / "checkpoints" / "66").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    code, error = fail(capfd, *options)
    assert code == 2 and f"--weights {source}: its last checkpoint: " in error
    shutil.rmtree(source / "checkpoints" / "66")
    code, error = fail(capfd, *options)
    assert code == 2 and "its last checkpoint, after epoch 3, is not there" in error


def test_a_loss_that_is_not_finite_stops_and_keeps_what_led_there(undisturbed, tmp_path, capfd):
    options = [*OPTIONS, tmp_path, "--learning-rate", "1e30"]
    code, error = fail(capfd, *options)
    assert code == 1
    folder = tmp_path / NAME
    step = json.loads((folder / "failure" / "about.json").read_text())["step"]
    assert error.startswith(f"error: training: the loss is not finite at step {step} (epoch 1): ")
    assert "/kernel was not finite before it" in error or "the largest " in error
    assert "Try a lower --learning-rate" in error and str(folder / "failure") in error

    code, error = fail(capfd, *options, "--resume", "--debug-nans", other_lines=True)
    assert code == 1
    assert "error: training: --debug-nans found an invalid value (nan) encountered in " in error
    assert ".py:" in error and " at step " in error


def test_scores_that_are_not_finite_stop_and_keep_what_led_there(tmp_path, monkeypatch, capfd):
    options = [*OPTIONS, tmp_path, "--criterion", "synflow", "--rounds", "3"]
    make_score, rounds = factories.make_score, []

    def make_failing_score(*args, **kwargs):
        score = make_score(*args, **kwargs)

        def failing_score(*args):
            rounds.append(1)
            scores, metrics = score(*args)
            if len(rounds) == 2:
                scores["hidden_1"]["kernel"] = scores["hidden_1"]["kernel"].at[3, 5].set(jnp.nan)
            return scores, metrics

        return failing_score

    with monkeypatch.context() as patch:
        patch.setattr(factories, "make_score", make_failing_score)
        code, error = fail(capfd, *options)
    assert code == 1
    assert "round 2 of 3: scores: 1 of 30000 entries of leaf 'hidden_1/kernel' are not" in error
    [folder] = tmp_path.iterdir()
    about = json.loads((folder / "failure" / "about.json").read_text())
    assert about["round"] == 2
    kept = rows(folder / "search.csv")[0]["num_kept"]
    with np.load(folder / "failure" / "mask.npz") as mask:
        assert sum(int(mask[name].sum()) for name in mask.files) == kept
    with np.load(folder / "failure" / "params.npz") as params:
        assert "fc/bias" in params.files
