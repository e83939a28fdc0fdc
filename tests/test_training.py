"""Training against NumPy: optimiser, statistics, evaluation; resuming from a checkpoint."""

import functools
import importlib.util
import itertools
import json
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from tensorboardX.proto.event_pb2 import Event

from experiments import data
from experiments.shell.errors import Preempted, RunFailed, UserError
from experiments.storage import run_folder
from experiments.training import checkpoints, inputs, loop, tensorboard
from experiments.training import steps as training
from experiments.training.config import TrainingConfig
from ntksap_jax import masks, sharding

NUM_CLASSES = 3
SGD = TrainingConfig(
    epochs=4, batch_size=8, learning_rate=0.1, drop_epochs=(2,), momentum=0.9, weight_decay=0.01
)


class ConvNet(nn.Module):
    """Convolution, BatchNorm, classifier: the smallest network with all that a state holds."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), use_bias=False, name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")(x)
        return nn.Dense(NUM_CLASSES, name="fc")(nn.relu(x).mean((1, 2)))


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(NUM_CLASSES, name="fc")(x.reshape(len(x), -1))


def scale(images):
    return images.astype(jnp.float32) / 255


def no_augmentation(key, images):
    del key
    return scale(images)


def noisy(key, images):
    return scale(images) + 0.1 * jax.random.normal(key, images.shape)


def make_batches(num_batches, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num_batches, SGD.batch_size, 6, 6, 1), np.uint8)
    return images, rng.integers(0, NUM_CLASSES, (num_batches, SGD.batch_size), np.int32)


@functools.cache
def start(model, config=SGD):
    """Returns a state with a random mask, the mask, the original variables and the optimiser."""
    rng = np.random.default_rng(0)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 6, 6, 1)))
    mask = masks.map_prunable(
        lambda m: jnp.asarray(rng.random(m.shape) < 0.5), masks.create(variables["params"])
    )
    optimizer = training.make_optimizer(config, steps_per_epoch=2)
    state = training.init_state(variables, optimizer, mask)
    return state, mask, variables, optimizer


@functools.cache
def compiled_step(model, augment, config=SGD):
    return training.make_train_step(model, start(model, config)[-1], augment)


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


# -- Learning rate -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, {0: 0.4, 19: 0.4, 20: 0.04, 31: 0.04, 32: 0.004}),
        # It rises linearly, and what follows is not shifted.
        ({"warmup_epochs": 1}, {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4, 4: 0.4, 19: 0.4, 20: 0.04}),
        (
            {"warmup_epochs": 1, "lr_schedule": "cosine"},
            {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4, 4: 0.4, 4 + 18: 0.2, 40: 0.0},
        ),
    ],
)
def test_learning_rates(options, rates):
    config = TrainingConfig(epochs=10, learning_rate=0.4, drop_epochs=(5, 8), **options)
    rate = training.learning_rate(config, 4)
    np.testing.assert_allclose([rate(s) for s in rates], [*rates.values()], 1e-6, atol=1e-8)


# -- Steps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_are_those_of_pytorchs_sgd_on_the_masked_network(nesterov):
    config = TrainingConfig(
        learning_rate=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.01, drop_epochs=()
    )
    state, mask, variables, _ = start(Linear(), config)
    train_step = compiled_step(Linear(), no_augmentation, config)
    keep = np.asarray(mask["fc"]["kernel"])
    weights = np.asarray(variables["params"]["fc"]["kernel"], np.float64) * keep
    bias = np.asarray(variables["params"]["fc"]["bias"], np.float64)
    velocity = [np.zeros_like(weights), np.zeros_like(bias)]

    for images, labels in zip(*make_batches(3), strict=True):
        inputs = images.reshape(len(images), -1) / 255
        logits = inputs @ weights + bias
        odds = np.exp(logits - logits.max(1, keepdims=True))
        softmax = odds / odds.sum(1, keepdims=True)
        loss = -np.log(softmax[np.arange(len(labels)), labels]).mean()
        residual = (softmax - np.eye(NUM_CLASSES)[labels]) / len(labels)
        # torch.optim.SGD: g += decay * w; v = momentum * v + g; w -= rate * v, or with Nesterov
        # w -= rate * (g + momentum * v)
        gradients = [inputs.T @ residual * keep + 0.01 * weights, residual.sum(0) + 0.01 * bias]
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        steps = [g + 0.9 * v if nesterov else v for v, g in zip(velocity, gradients, strict=True)]
        weights, bias = weights - 0.1 * steps[0], bias - 0.1 * steps[1]

        state, metrics = train_step(jax.random.key(0), state, images, labels)
        np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
        assert int(metrics.num_correct) == (logits.argmax(1) == labels).sum()
    np.testing.assert_allclose(state.params["fc"]["kernel"], weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.params["fc"]["bias"], bias, rtol=1e-4, atol=1e-6)


def test_training_starts_from_the_original_weights_and_keeps_pruned_ones_at_zero():
    state, mask, variables, _ = start(ConvNet())
    assert_equal(state.params, masks.apply(mask, variables["params"]))
    train_step = compiled_step(ConvNet(), noisy)
    for images, labels in zip(*make_batches(5), strict=True):
        state, _ = train_step(jax.random.key(0), state, images, labels)
    assert int(state.step) == 5
    assert_equal(state.params, masks.apply(mask, state.params))
    moved = state.params["conv"]["kernel"] != variables["params"]["conv"]["kernel"]
    assert bool(jnp.all(moved | ~mask["conv"]["kernel"]))


def test_batch_statistics_move_by_a_tenth_towards_those_of_the_batch():
    state, *_ = start(ConvNet())
    train_step = compiled_step(ConvNet(), no_augmentation)
    images, labels = (array[0] for array in make_batches(1))
    conv = jax.jit(nn.Conv(4, (3, 3), use_bias=False).apply)
    activations = np.asarray(conv({"params": state.params["conv"]}, images / np.float32(255)))
    new, _ = train_step(jax.random.key(0), state, images, labels)
    expected = {
        "mean": 0.1 * activations.mean((0, 1, 2)),
        "var": 0.9 + 0.1 * activations.var((0, 1, 2)),
    }
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        new.batch_stats["bn"],
        expected,
    )


def test_every_step_augments_differently_but_repeatably():
    state, *_ = start(Linear())
    train_step = compiled_step(Linear(), noisy)
    images, labels = (array[0] for array in make_batches(1))
    key = jax.random.key(0)
    later = state._replace(step=state.step + 1)
    losses = [
        float(train_step(k, s, images, labels)[1].loss)
        for k, s in [(key, state), (key, state), (key, later), (jax.random.key(1), state)]
    ]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_one_compilation_serves_every_mask():
    state, mask, variables, optimizer = start(ConvNet())
    train_step = training.make_train_step(ConvNet(), optimizer, no_augmentation)
    images, labels = (array[0] for array in make_batches(1))
    train_step(jax.random.key(0), state, images, labels)
    dense = training.init_state(variables, optimizer, masks.create(variables["params"]))
    train_step(jax.random.key(0), dense, images, labels)
    assert train_step._cache_size() == 1


# -- Evaluation ----------------------------------------------------------------------------------


@jax.jit
def apply(variables, images):
    return ConvNet().apply(variables, scale(images))


@pytest.mark.parametrize("batch_size", [2, 32])
def test_evaluation_counts_every_example_once(monkeypatch, batch_size):
    monkeypatch.setattr(inputs, "EVAL_BATCH_SIZE", batch_size)
    state, images = start(ConvNet())[0], make_images()
    labels = images.dataset.test_labels
    logits = np.asarray(apply(state.variables, images.dataset.test_images))
    loss = (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]).mean()
    score = inputs.evaluate(images, state, eval_step=training.make_eval_step(ConvNet(), scale))
    assert score.loss == pytest.approx(float(loss), rel=1e-5)
    assert score.accuracy == np.mean(np.argmax(logits, 1) == labels)


# -- The loop ------------------------------------------------------------------------------------


def make_images(devices=1):
    """A data set of two batches of 8 and a rest of 3, and devices to train on."""
    rng = np.random.default_rng(0)
    num_train = 2 * SGD.batch_size + 3
    dataset = data.Dataset(
        name="random",
        train_images=rng.integers(0, 256, (num_train, 6, 6, 1), np.uint8),
        train_labels=rng.integers(0, NUM_CLASSES, num_train, np.int32),
        test_images=rng.integers(0, 256, (5, 6, 6, 1), np.uint8),
        test_labels=rng.integers(0, NUM_CLASSES, 5, np.int32),
        class_names=tuple("abc"),
        mean=(0.0,),
        std=(1.0,),
        crop_padding=0,
        flip=False,
        source="random",
        note="",
    )
    mesh = sharding.data_mesh(jax.devices()[:devices])
    return inputs.make(dataset, SGD.batch_size)._replace(mesh=mesh)


def make_stage(folder, train_step, *, num_steps=7, row_steps=3):
    return loop.Stage(
        name="Testing",
        folder=folder,
        table="metrics.csv",
        run="run",
        keys=(jax.random.key(1), jax.random.key(2)),
        train_step=train_step,
        learning_rate=lambda step: 0.1,
        num_steps=num_steps,
        row_steps=row_steps,
        measure=lambda state: {"bias": float(jnp.sum(state.params["fc"]["bias"]))},
        describe=lambda row: f"row {row['epoch']}",
        advice="another rate",
    )


def run_stage(stage, state, *, devices=1, stop_at=None, save_minutes=1e9):
    """Trains, up to a call for the end after some steps."""
    steps = iter(range(int(1e9)))
    session = loop.Session(
        rich.console.Console(quiet=True), lambda: next(steps) + 1 == stop_at, save_minutes
    )
    return loop.train(stage, state, make_images(devices), session)


def without_seconds(rows):
    return [{**row, "seconds": None} for row in rows]


@functools.cache
def undisturbed():
    """Variables and rows of a stage that nobody disturbed."""
    with tempfile.TemporaryDirectory() as folder:
        stage = make_stage(Path(folder), compiled_step(ConvNet(), noisy))
        variables, rows = run_stage(stage, start(ConvNet())[0])
        assert run_folder.read_table(Path(folder) / "metrics.csv") == rows
    return variables, without_seconds(rows)


def test_a_stage_takes_a_step_a_batch_and_its_rows_are_means():
    state, train_step = start(ConvNet())[0], compiled_step(ConvNet(), noisy)
    images, metrics = make_images(), []
    for epoch in (1, 2, 3, 4):
        for batch in images.dataset.train_batches(jax.random.key(1), epoch, SGD.batch_size):
            if len(metrics) < 7:
                state, one = train_step(jax.random.key(2), state, *batch)
                metrics.append(jax.device_get(one))
    variables, rows = undisturbed()
    assert_equal(variables, state.variables)
    assert [row["step"] for row in rows] == [3, 6, 7]
    for row, part in zip(rows, (metrics[:3], metrics[3:6], metrics[6:]), strict=True):
        assert row["train_loss"] == pytest.approx(np.mean([one.loss for one in part]))
        correct = sum(int(one.num_correct) for one in part)
        assert row["train_accuracy"] == correct / (len(part) * SGD.batch_size)
    assert rows[-1]["bias"] == float(jnp.sum(state.params["fc"]["bias"]))


@pytest.mark.parametrize(("step", "check_every"), [(1, 2), (3, 2), (4, 50), (6, 50)])
def test_a_stage_that_was_ended_anywhere_goes_on_bit_for_bit(
    tmp_path, monkeypatch, step, check_every
):
    monkeypatch.setattr(loop, "CHECK_EVERY", check_every)
    stage = make_stage(tmp_path, compiled_step(ConvNet(), noisy))
    state = start(ConvNet())[0]
    with pytest.raises(Preempted):
        run_stage(stage, state, stop_at=step)
    with checkpoints.open_manager(tmp_path / "checkpoints") as manager:
        assert manager.latest_step() == step
    variables, rows = run_stage(stage, state)
    assert_equal(variables, undisturbed()[0])
    assert without_seconds(rows) == undisturbed()[1]


@pytest.mark.parametrize("check_every", [2, 50])
def test_a_loss_that_is_not_finite_stops_training_and_what_led_there_is_kept(
    tmp_path, monkeypatch, check_every
):
    monkeypatch.setattr(loop, "CHECK_EVERY", check_every)
    state, train_step = start(Linear())[0], compiled_step(Linear(), no_augmentation)

    def failing_step(key, state, images, labels):
        new, metrics = train_step(key, state, images, labels)
        bad = int(state.step) >= 4
        return new, metrics._replace(loss=jnp.nan if bad else metrics.loss)

    stage = make_stage(tmp_path, failing_step)
    with pytest.raises(RunFailed, match=r"^testing: the loss is not finite at step 5 \(epoch 3\)"):
        run_stage(stage, state)
    about = json.loads((tmp_path / "failure" / "about.json").read_text())
    assert (about["step"], about["stage"]) == (5, "Testing")
    # The step that failed can be repeated from what was kept.
    batches = inputs.train_batches(make_images(), jax.random.key(1), start=0)
    for batch in itertools.islice(batches, 4):
        state, _ = train_step(jax.random.key(2), state, *batch)
    with np.load(tmp_path / "failure" / "state.npz") as kept:
        assert int(kept["step"]) == 4
        np.testing.assert_array_equal(kept["params/fc/kernel"], state.params["fc"]["kernel"])
    with np.load(tmp_path / "failure" / "batch.npz") as kept:
        for name, array in zip(kept.files, next(batches), strict=True):
            np.testing.assert_array_equal(kept[name], array)


def test_rows_are_events_for_tensorboard_and_none_is_doubled(tmp_path):
    rows = [{"epoch": n, "step": 10 * n, "loss": 1 / n, "sha256": "a"} for n in (1, 2, 3)]
    table = tmp_path / "metrics.csv"
    with tensorboard.events(table, [], by="step", wanted=True) as add:
        add(rows[0])
        add(rows[1])  # After the last checkpoint: a session that resumes begins with one row.
    with tensorboard.events(table, rows[:1], by="step", wanted=True) as add:
        add(rows[1])
        add(rows[2])
    assert read_events(tmp_path / "tensorboard" / "metrics") == {
        "epoch": [(10, 1), (20, 2), (30, 3)],
        "loss": [(10, 1), (20, 0.5), (30, pytest.approx(1 / 3))],
    }


def read_events(folder):
    """Returns (step, value) pairs by tag, of all files in the folder."""
    found = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:  # A record is its length, a check sum, an event, a check sum.
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_without_its_library_events_are_refused(monkeypatch):
    tensorboard.check(True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tensorboard.check(False)
    with pytest.raises(UserError, match="--tensorboard needs tensorboardX: run `pip install"):
        tensorboard.check(True)
