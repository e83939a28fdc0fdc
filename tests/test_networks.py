"""linen modules as pure functions: batch statistics, calibration, errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ntksap_jax as nts
from ntksap_jax.ops import _onednn

FEATURES = (4, 6)
INPUTS = jax.random.normal(jax.random.key(1), (8, 6, 6, 2)) * 2 + 1


@pytest.fixture(scope="module")
def network():
    return oracles.conv_bn(*FEATURES)


@pytest.fixture(scope="module")
def params(network):
    """Weights whose normalisation does something: random scales and biases."""
    leaves, structure = jax.tree.flatten(network.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return jax.tree.unflatten(
        structure,
        [p + 0.3 * jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)],
    )


@jax.jit
def train_mode(params, inputs):
    model = oracles.ConvBN(FEATURES)
    return model.apply({"params": params}, inputs, train=True, mutable=["batch_stats"])


def test_init_is_the_modules_own():
    network = oracles.conv_bn(*FEATURES)
    init = jax.jit(oracles.ConvBN(FEATURES).init)
    want = init(jax.random.key(3), jnp.zeros((1, 6, 6, 2)))["params"]
    got = network.init(jax.random.key(3))
    np.testing.assert_allclose(oracles.flat(got), oracles.flat(want), rtol=1e-6, atol=1e-6)


def test_apply_normalises_with_the_batchs_own_statistics(network, params):
    """In one pass, or in two with the biased variance."""
    want, _ = train_mode(params, INPUTS)
    got, two_passes = jax.jit(
        lambda p: (network.apply(p, INPUTS), network.calibrate(p, INPUTS)(p, INPUTS))
    )(params)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(two_passes, got, rtol=1e-5, atol=1e-6)


def test_calibrated_function_is_evaluation_mode_with_those_statistics(network, params):
    """Biased: flax's own statistics (momentum 0). Unbiased: the variances n/(n - 1) times those."""
    _, updates = train_mode(params, INPUTS)
    fresh = {"mean": 0.0, "var": 1.0}  # flax starts its averages there; momentum is 0.99
    statistics = {
        name: {k: (v - 0.99 * fresh[k]) / 0.01 for k, v in layer.items()}
        for name, layer in updates["batch_stats"].items()
    }
    count = INPUTS.shape[0] * 36
    other = jax.random.normal(jax.random.key(9), (3, 6, 6, 2))
    for unbiased in (False, True):
        if unbiased:
            statistics = {
                name: layer | {"var": layer["var"] * count / (count - 1)}
                for name, layer in statistics.items()
            }
        want = jax.jit(oracles.ConvBN(FEATURES).apply)(
            {"params": params, "batch_stats": statistics}, other
        )
        calibrated = network.calibrate(params, INPUTS, unbiased=unbiased)
        got = jax.jit(calibrated)(params, other)
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3)


def test_statistics_are_constant_under_differentiation(network, params):
    """Both ways to hold them constant agree; in training, derivatives flow through them."""
    tangent = jax.tree.map(jnp.ones_like, params)

    def derivative(fn):
        return np.asarray(jax.jit(lambda p: jax.jvp(fn, (p,), (tangent,))[1])(params))

    held = derivative(lambda p: network.apply(p, INPUTS))
    calibrated = derivative(lambda p: network.calibrate(params, INPUTS)(p, INPUTS))
    through = derivative(lambda p: train_mode(p, INPUTS)[0])
    in_training = derivative(lambda p: network.apply_train(p, INPUTS))
    np.testing.assert_allclose(in_training, through, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(held, calibrated, rtol=1e-3, atol=1e-4)
    assert np.linalg.norm(held - through) > 0.1 * np.linalg.norm(held)


def test_the_calibration_pass_costs_nothing_where_it_is_shared(network, params, monkeypatch):
    """The compiler merges it with the pass that is differentiated: no extra forward pass."""
    # XLA does not know how many operations oneDNN's convolutions take.
    monkeypatch.setattr(_onednn, "applies", lambda *_: False)

    def calibrated(p, unbiased):
        return network.calibrate(p, INPUTS, unbiased=unbiased)(p, INPUTS)

    def flops(fn):
        return jax.jit(fn).lower(params).compile().cost_analysis()["flops"]

    forward = flops(lambda p: network.apply(p, INPUTS))
    assert flops(lambda p: calibrated(p, unbiased=False)) < 1.1 * forward
    assert flops(lambda p: calibrated(p, unbiased=True)) > 1.5 * forward


def test_batch_norm_called_with_an_argument_or_over_other_axes():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.BatchNorm()(x, use_running_average=not train)
            x = nn.BatchNorm(axis=1)(x, not train)
            return nn.BatchNorm(axis=(1, 2), use_scale=False)(x, use_running_average=not train)

    x = jax.random.normal(jax.random.key(0), (5, 3, 4)) + 2
    network = nts.linen(Model(), (3, 4), train=False)
    params = network.init(jax.random.key(0))
    got, (want, _) = jax.jit(
        lambda params: (
            network.apply(params, x),
            Model().apply({"params": params}, x, train=True, mutable=["batch_stats"]),
        )
    )(params)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_networks_without_batch_statistics_calibrate_to_themselves():
    network = oracles.smooth_mlp()
    params = network.init(jax.random.key(0))
    x = jnp.ones((2, 4))
    np.testing.assert_array_equal(
        network.calibrate(params, x, unbiased=True)(params, x), network.apply(params, x)
    )


def test_errors():
    single = nts.linen(oracles.ConvBN(), (1, 1, 2), train=False)
    params = single.init(jax.random.key(0))
    with pytest.raises(ValueError, match="single value per feature"):
        single.calibrate(params, jnp.ones((1, 1, 1, 2)), unbiased=True)
    with pytest.raises(ValueError, match="training mode.*train=False"):
        nts.linen(oracles.ConvBN(), (6, 6, 2), train=True)
    with pytest.raises(ValueError, match="ConvBN cannot be initialised"):
        nts.linen(oracles.ConvBN(), (6, 6, 2), nonsense=1)
    with pytest.raises(TypeError, match="input_shape: got 3"):
        nts.linen(nn.Dense(2), 3)


def test_statistics_of_another_model():
    scalar = {"BatchNorm_0": {"mean": jnp.zeros(()), "var": jnp.ones(4)}}
    for stats, shape in (({"batch_stats": {}}, "None"), (scalar, r"\(\)")):
        match = f"batch_stats: leaf 'BatchNorm_0/mean' has shape {shape}, the model's"
        with pytest.raises(ValueError, match=match):
            nts.linen(oracles.ConvBN(), (6, 6, 2), batch_stats=stats, train=False)


def test_running_statistics_are_those_given_or_those_before_training():
    model = oracles.ConvBN()
    inputs = jax.random.normal(jax.random.key(1), (5, 6, 6, 2))
    variables = jax.jit(model.init)(jax.random.key(0), inputs)
    stats = {"BatchNorm_0": {"mean": jnp.arange(4.0), "var": jnp.arange(1.0, 5.0)}}
    for given in (None, stats):
        network = nts.linen(model, (6, 6, 2), batch_stats=given, train=False)
        want = model.apply(variables | ({"batch_stats": given} if given else {}), inputs)
        got = network.apply_running(variables["params"], inputs)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
