"""What was saved on some devices goes on on others: searches, trainings, and the real program."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import oracles
import pytest
import safetensors.numpy
from test_training import ConvNet, compiled_step, make_stage, noisy, run_stage, start, undisturbed

import ntksap_jax as nts
from experiments.shell.errors import Preempted
from experiments.training import checkpoints
from experiments.training.checkpoints import Progress
from ntksap_jax import criteria, masks, sharding

KEY = jax.random.key(1)
ROOT = Path(__file__).parents[1]


def placements(tree):
    """The same numbers on one device, copied to four, and split over four."""
    mesh = sharding.model_mesh(4, jax.devices()[:4])
    rule = sharding.split_outputs(mesh, min_size=1)
    copied = sharding.replicate(tree, sharding.data_mesh(jax.devices()[:4]))
    return [tree, copied, sharding.shard_params(tree, mesh, rule=rule)]


def test_a_search_goes_on_on_other_devices_with_a_mask_that_was_saved(tmp_path):
    network = oracles.conv_bn(8)
    score = criteria.ntk_sap(network, num_samples=2, batch_size=8)
    schedule = [0.7, 0.5, 0.3]
    params = network.init(KEY)
    undisturbed, _ = nts.prune(KEY, params, score, schedule=schedule)

    def interrupted(info, mask):
        masks.save(tmp_path / "mask.safetensors", mask)
        if info.round == 2:
            raise KeyboardInterrupt

    placed = placements(params)
    for before, after in zip(placed, placed[1:] + placed[:1], strict=True):
        with pytest.raises(KeyboardInterrupt):
            nts.prune(KEY, before, score, schedule=schedule, on_round=interrupted)
        mask, _ = nts.prune(
            KEY,
            after,
            score,
            schedule=schedule,
            mask=masks.load(tmp_path / "mask.safetensors", like=after),
            start_round=2,
        )
        np.testing.assert_array_equal(oracles.flat(mask), oracles.flat(undisturbed))


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 2), (2, 1)])
def test_a_training_goes_on_on_other_devices(tmp_path, before, after):
    state = start(ConvNet())[0]
    stage = make_stage(tmp_path, compiled_step(ConvNet(), noisy))
    with pytest.raises(Preempted):
        run_stage(stage, state, devices=before, stop_at=4)
    variables, rows = run_stage(stage, state, devices=after)
    expected_variables, expected_rows = undisturbed()
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        variables,
        expected_variables,
    )
    for row, expected in zip(rows, expected_rows, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)


@pytest.mark.parametrize("number", range(3))
def test_a_checkpoint_is_read_onto_other_devices(tmp_path, number):
    state, *_ = start(ConvNet())
    placed = placements(state)
    with checkpoints.open_manager(tmp_path) as manager:
        checkpoints.save(manager, 3, placed[number], Progress(), run="run")
    after = placed[(number + 1) % 3]
    with checkpoints.open_manager(tmp_path) as manager:
        restored, _ = checkpoints.restore_last(manager, after, run="run", say=pytest.fail)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    lying = jax.tree.map(lambda x, y: x.sharding == y.sharding, restored, after)
    assert all(jax.tree.leaves(lying))


# -- The program -----------------------------------------------------------------------------------


NAME = "digits-mlp-ntk_sap-0.1-seed0"
OPTIONS = [
    *("demo", "--model", "mlp", "--density", "0.1", "--rounds", "4", "--num-samples", "2"),
    *("--noise-batch-size", "20", "--epochs", "3", "--save-minutes", "1e-9", "--compare"),
    *("--resume", "--runs-dir"),
]
DRIVER = """
import importlib, os, signal, sys

from experiments.cifar import program as cifar

module, name, number = importlib.import_module(sys.argv[1]), sys.argv[2], int(sys.argv[3])
function, calls = getattr(module, name), 0


def preempted(*args, **kwargs):
    global calls
    calls += 1
    if calls == number:
        os.kill(os.getpid(), signal.SIGTERM)
    return function(*args, **kwargs)


setattr(module, name, preempted)
cifar.main(sys.argv[4:])
"""
"""Runs the program with SIGTERM before the n-th call of one of its functions."""
PREEMPTED, PATIENCE = 75, 600.0


def run_program(runs, *, devices, preempted_at=("experiments.training.checkpoints", "save", "0")):
    """Returns the exit code."""
    ended = subprocess.run(
        [sys.executable, "-c", DRIVER, *preempted_at, *OPTIONS, runs],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode in (0, PREEMPTED), ended.stderr
    return ended.returncode


def read_result(runs):
    """Returns the mask, and the rows of both tables."""
    archive = safetensors.numpy.load_file(runs / NAME / "mask.safetensors")
    mask = np.concatenate([archive[name].ravel() for name in sorted(archive)])
    tables = []
    for name in ("search.csv", "metrics.csv"):
        with (runs / NAME / name).open(newline="") as file:
            tables.append(list(csv.DictReader(file)))
    return mask, *tables


@pytest.mark.long
@pytest.mark.by_hand
def test_the_program_goes_on_on_other_devices_and_back(tmp_path):
    """One device up to a round of the search, four up to a step of the training, one to the end."""
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    in_search = ("experiments.cifar.search_files", "save_round", "2")
    in_training = ("experiments.training.checkpoints", "save", "20")
    assert run_program(disturbed, devices=1, preempted_at=in_search) == PREEMPTED
    assert run_program(disturbed, devices=4, preempted_at=in_training) == PREEMPTED
    assert run_program(disturbed, devices=1) == 0
    assert run_program(undisturbed, devices=1) == 0

    sessions = json.loads((disturbed / NAME / "environment.json").read_text())
    assert [len(session["devices"]) for session in sessions] == [1, 4, 1]
    mask, rounds, epochs = read_result(disturbed)
    expected_mask, expected_rounds, expected_epochs = read_result(undisturbed)
    assert np.mean(mask == expected_mask) >= 0.9999
    assert [r["num_kept"] for r in rounds] == [r["num_kept"] for r in expected_rounds]
    assert len(epochs) == len(expected_epochs) == 3
    for epoch, expected in zip(epochs, expected_epochs, strict=True):
        assert epoch["step"] == expected["step"]
        for name in ("train_loss", "test_loss"):
            assert float(epoch[name]) == pytest.approx(float(expected[name]), rel=1e-3)
        # Of 364 images one may be on the edge.
        assert float(epoch["test_accuracy"]) == pytest.approx(
            float(expected["test_accuracy"]), abs=1.5 / 364
        )
