"""Nothing is lost: killed, preempted, out of disk, or with numbers that are not finite.

`NTKSAP_LONG_TESTS=all` kills 60 times instead of 4, damages 200 run folders instead of 5, and 300
checkpoint folders instead of 20 (in test_checkpoints.py).
"""

import csv
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
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import kill_harness
import numpy as np
import pytest
from damage import ORBAX_LEAVES_SOMETHING, collected_here, damage  # noqa: F401
from test_training import Linear, start

from experiments.cifar import factories, search_files
from experiments.cifar import program as cifar
from experiments.shell import errors
from experiments.storage import locking, run_folder
from experiments.training import checkpoints, loop
from experiments.training.checkpoints import Progress
from ntksap_jax import masks

pytestmark = ORBAX_LEAVES_SOMETHING
LONG = os.environ.get("NTKSAP_LONG_TESTS") == "all"
NUM_KILLS = 60 if LONG else 4
NUM_DAMAGES = 200 if LONG else 5
OPTIONS = [
    *("demo", "--model", "mlp", "--criterion", "random", "--density", "0.1", "--rounds", "1"),
    *("--epochs", "3", "--compare", "--runs-dir"),
]
NAME = "digits-mlp-random-0.1-seed0"


def read_csv(path):
    with path.open(newline="") as file:
        return [{**row, "seconds": None} for row in csv.DictReader(file)]


def fail(capfd, *arguments):
    """Runs the program, which must end with one line; returns its exit code and the line."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        cifar.main(list(map(str, arguments)))
    error = capfd.readouterr().err
    assert error.count("\n") == 1, error
    return stop.value.code, error


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
        assert read_csv(folder / name) == read_csv(other / name)
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
@pytest.mark.by_hand
def test_killed_at_random_moments_the_result_is_that_of_an_undisturbed_run(tmp_path, alone):
    rng = random.Random(0)
    signals = [*[signal.SIGKILL] * 3, signal.SIGTERM] * (NUM_KILLS // 4)
    happened = kill_harness.kill_until(rng, tmp_path, signals, kill_harness.result(alone))
    print(f"\n{dict(happened)}")


# -- Preempted -----------------------------------------------------------------------------------


def test_preempted_in_the_search_it_is_saved_after_the_round(tmp_path, monkeypatch, capfd):
    options = ["demo", "--model", "mlp", "--criterion", "synflow", "--rounds", "3", "--epochs", "1"]
    options += ["--warmup-epochs", "0", "--compare", "--runs-dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        before_call(patch, search_files, "round_row", 2, terminate)
        code, error = fail(capfd, *options)
    assert code == 75
    assert error.startswith("preempted, all is saved; to go on where it stopped: python -m exp")
    assert error.rstrip().endswith("--resume")
    [folder] = tmp_path.iterdir()
    assert len(read_csv(folder / "search.csv")) == 2
    cifar.main([*options, "--resume"])
    assert [row["round"] for row in read_csv(folder / "search.csv")] == ["1", "2", "3"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_preempted_within_an_epoch_it_is_saved_there(undisturbed, tmp_path, monkeypatch, capfd):
    folder = tmp_path / NAME

    def preempt(*arguments, step):
        make_job = cifar.make_job

        def make(config):
            job = make_job(config)

            def terminated(key, state, *batch):
                if int(state.step) + 1 == step:
                    terminate()
                return job.train_step(key, state, *batch)

            return job._replace(train_step=terminated)

        with monkeypatch.context() as patch:
            patch.setattr(cifar, "make_job", make)
            return fail(capfd, *arguments)[0]

    def last_step():
        with checkpoints.open_manager(folder / "checkpoints") as manager:
            return manager.latest_step()

    assert preempt(*OPTIONS, tmp_path, step=7) == 75
    assert last_step() == 7
    assert preempt(*OPTIONS, tmp_path, "--resume", step=30) == 75
    assert last_step() == 30
    # After the last step of an epoch the evaluation comes first.
    assert preempt(*OPTIONS, tmp_path, "--resume", step=44) == 75
    assert last_step() == 44
    assert len(read_csv(folder / "metrics.csv")) == 2
    cifar.main([*OPTIONS, str(tmp_path), "--resume"])
    assert_same(folder, undisturbed)


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


@pytest.fixture(scope="module")
def outcomes():
    """Counts what came of damages; `pytest -s` shows it."""
    counter = Counter()
    yield counter
    print(f"\n{sum(counter.values())} damaged run folders: {dict(counter)}")


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    """The run folder of a run that was preempted after two epochs."""
    runs = tmp_path_factory.mktemp("half_done")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        before_call(patch, checkpoints, "save", 2, terminate)
        cifar.main([*OPTIONS, str(runs)])
    return runs / NAME


@pytest.mark.parametrize("seed", range(NUM_DAMAGES))
def test_damage_anywhere_is_recovered_from_or_an_error(
    undisturbed, half_done, tmp_path, seed, capfd, outcomes
):
    shutil.copytree(half_done, tmp_path / NAME)
    damage(random.Random(seed), tmp_path / NAME)
    arguments = [*OPTIONS, str(tmp_path), "--resume"]
    try:
        cifar.main(arguments)
    except SystemExit as stop:
        error = capfd.readouterr().err
        assert stop.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
        outcomes["clear error"] += 1
    else:
        assert_same(tmp_path / NAME, undisturbed)
        warned = "warning: " in capfd.readouterr().out
        outcomes["recovered, loss said" if warned else "unharmed, or nothing lost"] += 1


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
mount -t tmpfs -o size=$1k tmpfs "$2" || exit 99
shift; runs="$1"; shift
"$@" "$runs"; code=$?
mount -o remount,size=50m "$runs"
"$@" "$runs" || exit 98
cp -r "$runs" "$runs.kept"
exit $code
"""


@pytest.mark.skipif(not LONG, reason="only with NTKSAP_LONG_TESTS=all: two starts for each size")
@pytest.mark.parametrize("kilobytes", range(20, 420, 50))
def test_on_a_small_disk_the_program_stops_and_goes_on_when_there_is_room(
    kilobytes, tmp_path, alone
):
    runs, command = tmp_path / "runs", kill_harness.COMMAND
    runs.mkdir()
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK, "sh", str(kilobytes), runs, *command],
        cwd=kill_harness.ROOT,
        capture_output=True,
        text=True,
    )
    if ended.returncode == 99 or "unshare" in ended.stderr:
        pytest.skip(f"no file system can be mounted here: {ended.stderr.strip()}")
    assert ended.returncode in (0, 74), ended.stderr
    if ended.returncode == 74:
        assert ended.stderr.startswith("error: the disk is full: No space left on device")
        assert ended.stderr.count("\n") == 1
    print(f"\n{kilobytes} kB: exit code {ended.returncode}")
    assert kill_harness.result(tmp_path / "runs.kept") == kill_harness.result(alone)


def test_other_errors_are_not_taken_for_a_full_disk():
    assert errors.disk_full(OSError(errno.EACCES, "Permission denied")) is None
    assert errors.disk_full(ValueError("no space")) is None


# -- Numbers that are not finite -----------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_keeps_what_led_there(undisturbed, tmp_path, capfd):
    options = [*OPTIONS, tmp_path, "--learning-rate", "1e30"]
    code, error = fail(capfd, *options)
    assert code == 1
    folder = tmp_path / NAME
    about = json.loads((folder / "failure" / "about.json").read_text())
    step = about["step"]
    assert error.startswith(f"error: training: the loss is not finite at step {step} (epoch 1): ")
    assert "/kernel was not finite before it" in error or "the largest " in error
    assert "Try a lower --learning-rate" in error and str(folder / "failure") in error

    # The step that failed can be repeated from what was kept.
    with np.load(folder / "failure" / "state.npz") as state:
        assert int(state["step"]) == step - 1
        weights = state["params/hidden_0/kernel"]
        assert weights.shape == (64, 300)
    with np.load(folder / "failure" / "batch.npz") as batch:
        assert [batch[name].shape for name in batch.files] == [(64, 8, 8, 1), (64,)]

    code, error = fail_loudly(capfd, *options, "--resume", "--debug-nans")
    assert code == 1
    assert "error: training: --debug-nans found an invalid value (nan) encountered in " in error
    assert ".py:" in error and " at step " in error


def fail_loudly(capfd, *arguments):
    """As `fail`, when JAX prints too."""
    with pytest.raises(SystemExit) as stop:
        cifar.main(list(map(str, arguments)))
    return stop.value.code, capfd.readouterr().err.splitlines()[-1]


def test_scores_that_are_not_finite_stop_and_keep_what_led_there(tmp_path, monkeypatch, capfd):
    options = ["demo", "--model", "mlp", "--criterion", "synflow", "--rounds", "3", "--compare"]
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
        code, error = fail(capfd, *options, "--runs-dir", tmp_path)
    assert code == 1
    assert "round 2 of 3: scores: 1 of 30000 entries of leaf 'hidden_1/kernel' are not" in error
    [folder] = tmp_path.iterdir()
    about = json.loads((folder / "failure" / "about.json").read_text())
    assert about["round"] == 2
    kept = int(read_csv(folder / "search.csv")[0]["num_kept"])
    with np.load(folder / "failure" / "mask.npz") as mask:
        assert sum(int(mask[name].sum()) for name in mask.files) == kept
    with np.load(folder / "failure" / "params.npz") as params:
        assert "fc/bias" in params.files
