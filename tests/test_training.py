"""Training against NumPy: optimiser, statistics, evaluation; resuming from a checkpoint."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import data
from experiments.training import steps as training
from experiments.training.config import TrainingConfig
from ntksap_jax import masks

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
    variables = model.init(jax.random.key(0), jnp.zeros((1, 6, 6, 1)))
    mask = masks.map_prunable(
        lambda m: jnp.asarray(rng.random(m.shape) < 0.5), masks.create(variables["params"])
    )
    optimizer = training.make_optimizer(config, steps_per_epoch=2)
    state = training.init_state(
        variables["params"], variables.get("batch_stats", {}), mask, optimizer
    )
    return state, mask, variables, optimizer


@functools.cache
def compiled_step(model, augment, config=SGD):
    return training.make_train_step(model, start(model, config)[-1], augment)


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


# -- Learning rate -------------------------------------------------------------------------------


def test_step_schedule_drops_after_the_named_epochs():
    config = TrainingConfig(epochs=160, learning_rate=0.1, drop_epochs=(80, 120))
    rate = training.learning_rate(config, 390)
    steps = [0, 80 * 390 - 1, 80 * 390, 120 * 390 - 1, 120 * 390, 160 * 390 - 1]
    np.testing.assert_allclose([rate(s) for s in steps], [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3], 1e-6)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_warmup_rises_linearly_and_does_not_shift_what_follows(schedule):
    config = TrainingConfig(
        epochs=10, learning_rate=0.4, lr_schedule=schedule, warmup_epochs=1, drop_epochs=(5,)
    )
    rate = training.learning_rate(config, 4)
    np.testing.assert_allclose([rate(s) for s in range(5)], [0.1, 0.2, 0.3, 0.4, 0.4], 1e-6)
    if schedule == "step":
        np.testing.assert_allclose([rate(19), rate(20)], [0.4, 0.04], 1e-6)
    else:
        np.testing.assert_allclose([rate(4 + 18), rate(40)], [0.2, 0.0], 1e-6, atol=1e-8)


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
    activations = nn.Conv(4, (3, 3), use_bias=False).apply(
        {"params": state.params["conv"]}, scale(images)
    )
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
    dense = training.init_state(
        variables["params"], variables["batch_stats"], masks.create(variables["params"]), optimizer
    )
    train_step(jax.random.key(0), dense, images, labels)
    assert train_step._cache_size() == 1


# -- Loops ---------------------------------------------------------------------------------------


def test_train_epoch_averages_over_batches_and_counts_steps():
    state, *_ = start(ConvNet())
    train_step = compiled_step(ConvNet(), noisy)
    batches = list(zip(*make_batches(3), strict=True))
    expected, metrics = state, []
    for images, labels in batches:
        expected, one = train_step(jax.random.key(7), expected, images, labels)
        metrics.append(one)
    calls = []
    got, score = training.train_epoch(
        jax.random.key(7),
        state,
        batches,
        train_step=train_step,
        on_step=lambda state, sums: calls.append((int(state.step), sums().num_steps)),
    )
    assert calls == [(1, 1), (2, 2), (3, 3)]
    assert_equal(got.params, expected.params)
    assert score.loss == pytest.approx(np.mean([m.loss for m in metrics]))
    assert score.accuracy == sum(int(m.num_correct) for m in metrics) / (3 * SGD.batch_size)


@pytest.mark.parametrize("check_every", [1, 2, 50])
def test_a_loss_that_is_not_finite_stops_training_and_names_the_first_step(
    monkeypatch, check_every
):
    monkeypatch.setattr(training, "CHECK_EVERY", check_every)
    state, *_ = start(Linear())

    train_step = compiled_step(Linear(), no_augmentation)
    batches = list(zip(*make_batches(5), strict=True))
    state = state._replace(step=jnp.int32(10))

    def failing_step(key, state, images, labels):
        new, metrics = train_step(key, state, images, labels)
        bad = int(state.step) >= 12
        return new, metrics._replace(loss=jnp.nan if bad else metrics.loss)

    with pytest.raises(training.Diverged) as error:
        training.train_epoch(jax.random.key(0), state, batches, train_step=failing_step)
    assert error.value.step == 13
    assert 10 <= int(error.value.state.step) <= 12


def test_the_rest_of_an_epoch_gives_the_score_of_the_whole(monkeypatch):
    monkeypatch.setattr(training, "CHECK_EVERY", 2)
    state, *_ = start(ConvNet())
    batches = list(zip(*make_batches(5), strict=True))
    run = functools.partial(
        training.train_epoch, jax.random.key(3), train_step=compiled_step(ConvNet(), noisy)
    )
    undisturbed = run(state, batches)
    for done in range(1, 5):
        halfway = []

        def stop(state, sums, done=done, halfway=halfway):
            if sums().num_steps == done:
                halfway.append((state, sums()))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(state, batches, on_step=stop)
        [(there, sums)] = halfway
        assert_equal(run(there, batches[done:], sums=sums), undisturbed)


@pytest.mark.parametrize("batch_size", [4, 7, 32])
def test_evaluation_counts_every_example_once(batch_size):
    state, _, _, _ = start(ConvNet())
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (10, 6, 6, 1), np.uint8)
    labels = rng.integers(0, NUM_CLASSES, 10, np.int32)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = ConvNet().apply(variables, scale(images))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    batches = zip(*data.eval_batches(10, batch_size), strict=True)
    score = training.evaluate(
        state,
        ((images[i], labels[i], real) for i, real in batches),
        eval_step=training.make_eval_step(ConvNet(), scale),
    )
    assert score.loss == pytest.approx(float(loss), rel=1e-5)
    assert score.accuracy == np.mean(np.argmax(logits, 1) == labels)
