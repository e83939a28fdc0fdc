"""linen modules as pure functions: batch statistics, calibration, errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ntksap_jax as nts
from ntksap_jax import ntk

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


def train_mode(params, inputs):
    model = oracles.ConvBN(FEATURES)
    return model.apply({"params": params}, inputs, train=True, mutable=["batch_stats"])


def test_init_is_the_modules_own():
    network = oracles.conv_bn(*FEATURES)
    want = oracles.ConvBN(FEATURES).init(jax.random.key(3), jnp.zeros((1, 6, 6, 2)))["params"]
    got = network.init(jax.random.key(3))
    np.testing.assert_allclose(oracles.flat(got), oracles.flat(want), rtol=1e-6, atol=1e-6)


def test_apply_normalises_with_the_batchs_own_statistics(network, params):
    want, _ = train_mode(params, INPUTS)
    np.testing.assert_allclose(network.apply(params, INPUTS), want, rtol=1e-4, atol=1e-5)


def test_calibrated_function_is_evaluation_mode_with_those_statistics(network, params):
    """Biased: flax's own statistics (momentum 0). Unbiased: the variances n/(n - 1) times those."""
    _, updates = train_mode(params, INPUTS)
    fresh = {"mean": 0.0, "var": 1.0}  # flax starts its averages there; momentum is 0.99
    statistics = {
        name: {k: (v - 0.99 * fresh[k]) / 0.01 for k, v in layer.items()}
        for name, layer in updates["batch_stats"].items()
    }
    count = INPUTS.shape[0] * 36
    for unbiased in (False, True):
        if unbiased:
            statistics = {
                name: layer | {"var": layer["var"] * count / (count - 1)}
                for name, layer in statistics.items()
            }
        other = jax.random.normal(jax.random.key(9), (3, 6, 6, 2))
        want = oracles.ConvBN(FEATURES).apply({"params": params, "batch_stats": statistics}, other)
        got = network.calibrate(params, INPUTS, unbiased=unbiased)(params, other)
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3)


def test_one_pass_equals_two_passes_with_the_biased_variance(network, params):
    np.testing.assert_allclose(
        network.calibrate(params, INPUTS)(params, INPUTS),
        network.apply(params, INPUTS),
        rtol=1e-5,
        atol=1e-6,
    )


def test_statistics_are_constant_under_differentiation(network, params):
    """Both ways to hold them constant agree, and differ from differentiating through them."""
    tangent = jax.tree.map(jnp.ones_like, params)

    def derivative(fn):
        return np.asarray(jax.jvp(fn, (params,), (tangent,))[1])

    held = derivative(lambda p: network.apply(p, INPUTS))
    calibrated = derivative(lambda p: network.calibrate(params, INPUTS)(p, INPUTS))
    through = derivative(lambda p: train_mode(p, INPUTS)[0])
    np.testing.assert_allclose(held, calibrated, rtol=1e-3, atol=1e-4)
    assert np.linalg.norm(held - through) > 0.1 * np.linalg.norm(held)


def test_the_calibration_pass_costs_nothing_where_it_is_shared(network, params):
    """The compiler merges it with the pass that is differentiated: no extra forward pass."""

    def calibrated(p, unbiased):
        return network.calibrate(p, INPUTS, unbiased=unbiased)(p, INPUTS)

    def flops(fn):
        return jax.jit(fn).lower(params).compile().cost_analysis()["flops"]

    forward = flops(lambda p: network.apply(p, INPUTS))
    assert flops(lambda p: calibrated(p, unbiased=False)) < 1.1 * forward
    assert flops(lambda p: calibrated(p, unbiased=True)) > 1.5 * forward


def test_perturbed_network_shares_the_clean_networks_statistics(network, params):
    """The finite difference compares two networks under one normalisation (the authors' code)."""
    apply = network.calibrate(params, INPUTS)
    doubled = jax.tree.map(lambda p: 2 * p, params)
    assert not np.allclose(apply(doubled, INPUTS), network.apply(doubled, INPUTS), rtol=0.1)


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
    want, _ = Model().apply({"params": params}, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(network.apply(params, x), want, rtol=1e-3, atol=1e-4)


def test_networks_without_batch_statistics_calibrate_to_themselves():
    network = oracles.smooth_mlp()
    params = network.init(jax.random.key(0))
    x = jnp.ones((2, 4))
    np.testing.assert_array_equal(
        network.calibrate(params, x, unbiased=True)(params, x), network.apply(params, x)
    )


def test_plain_functions():
    network = nts.plain(
        lambda key: {"w": jax.random.normal(key, (3, 2))}, lambda p, x: x @ p["w"], (3,)
    )
    params = network.init(jax.random.key(0))
    assert network.calibrate(params, jnp.ones((1, 3)), unbiased=True) is network.apply
    kernel = ntk.exact(lambda p: network.apply(p, jnp.ones((1, 3))), params)
    np.testing.assert_allclose(kernel, 3 * np.eye(2), rtol=1e-6)


class SharedNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = nn.BatchNorm(use_running_average=True)
        return norm(2 * norm(x) + 1)


class PaddedNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=True)(x, mask=jnp.ones(x.shape, bool))


class Stateful(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.variable("cache", "last", jnp.zeros, x.shape)
        return nn.Dense(1)(x)


class Argmax(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.argmax(nn.Dense(3)(x), axis=-1)


def test_errors():
    with pytest.raises(TypeError, match="model: got function"):
        nts.linen(lambda x: x, (3,))
    with pytest.raises(TypeError, match="bound module"):
        nts.linen(nn.Dense(2).bind({}), (3,))
    with pytest.raises(ValueError, match="training mode.*train=False"):
        nts.linen(oracles.ConvBN(), (6, 6, 2), train=True)
    with pytest.raises(ValueError, match="ConvBN cannot be initialised"):
        nts.linen(oracles.ConvBN(), (6, 6, 2), nonsense=1)
    with pytest.raises(ValueError, match="collection.*cache"):
        nts.linen(Stateful(), (3,))
    with pytest.raises(ValueError, match="dtype int32"):
        nts.linen(Argmax(), (3,))
    with pytest.raises(ValueError, match="'BatchNorm_0' is called twice"):
        nts.linen(SharedNorm(), (3,))
    with pytest.raises(ValueError, match="'BatchNorm_0' is given a mask"):
        nts.linen(PaddedNorm(), (3,))
    with pytest.raises(ValueError, match="mean evaluation.*dropout"):
        nts.linen(nn.Dropout(0.5, deterministic=False), (3,))
    with pytest.raises(TypeError, match="input_shape: got 3"):
        nts.linen(nn.Dense(2), 3)
    single = nts.linen(oracles.ConvBN(), (1, 1, 2), train=False)
    params = single.init(jax.random.key(0))
    with pytest.raises(ValueError, match="single value per feature"):
        single.calibrate(params, jnp.ones((1, 1, 1, 2)), unbiased=True)


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        ({"batch_stats": {}}, r"batch_stats: leaf 'BatchNorm_0/mean' has shape None, the model's"),
        (
            {"BatchNorm_0": {"mean": jnp.zeros(()), "var": jnp.ones(4)}},
            r"has shape \(\), the model's",
        ),
    ],
)
def test_statistics_of_another_model(stats, message):
    with pytest.raises(ValueError, match=message):
        nts.linen(oracles.ConvBN(), (6, 6, 2), batch_stats=stats, train=False)


def test_running_statistics_are_those_given_or_those_before_training():
    model = oracles.ConvBN()
    inputs = jax.random.normal(jax.random.key(1), (5, 6, 6, 2))
    variables = model.init(jax.random.key(0), inputs)
    stats = {"BatchNorm_0": {"mean": jnp.arange(4.0), "var": jnp.arange(1.0, 5.0)}}
    for given in (None, stats):
        network = nts.linen(model, (6, 6, 2), batch_stats=given, train=False)
        want = model.apply(
            {"params": variables["params"], "batch_stats": given or variables["batch_stats"]},
            inputs,
        )
        np.testing.assert_allclose(
            network.apply_running(variables["params"], inputs), want, rtol=1e-5, atol=1e-6
        )


def test_training_mode_has_the_same_values_and_the_gradient_of_training():
    """Derivatives flow through the batch's statistics, as flax's own training mode has them."""
    model = oracles.ConvBN()
    network = nts.linen(model, (6, 6, 2), train=False)
    params = network.init(jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (5, 6, 6, 2))
    stats = {"BatchNorm_0": {"mean": jnp.zeros(4), "var": jnp.ones(4)}}

    def train(params):
        variables = {"params": params, "batch_stats": stats}
        return model.apply(variables, inputs, train=True, mutable=["batch_stats"])[0]

    def gradient(fn):
        return oracles.flat(jax.grad(lambda params: jnp.sum(fn(params) ** 3))(params))

    ours = gradient(lambda params: network.apply_train(params, inputs))
    np.testing.assert_allclose(ours, gradient(train), rtol=1e-3, atol=1e-5)
    constant = gradient(lambda params: network.apply(params, inputs))
    assert np.linalg.norm(ours - constant) > 0.1 * np.linalg.norm(ours)
