"""Networks as sums over paths: what becomes of each kind of operation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ntksap_jax as nts
from ntksap_jax import _paths, models


class Pooled(nn.Module):
    """Both pools, with padding, and a flattened map of activations."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (3, 3), (2, 2), "SAME")
        x = nn.avg_pool(nn.Conv(3, (3, 3))(x), (2, 2), (1, 1))
        return nn.Dense(2)(x.reshape(len(x), -1))


def path_sum(apply, params, inputs, *, factor=jnp.abs, **options):
    """The sum over paths as a number; `apply` may have one output or several."""
    path = _paths.evaluate(apply, params, inputs, factor=factor, **options)
    return np.asarray(path.array) * 2.0 ** float(path.exponent)


ZOO = {
    "mlp": (oracles.ReluMLP((6, 5)), (4,), {}),
    "batch norm": (oracles.ConvBN((4, 6)), (6, 6, 2), {"train": False}),
    "pad shortcut": (models.ResNet((1, 1), 4, 5, shortcut="pad"), (8, 8, 3), {"train": False}),
    "max pool": (Pooled(), (9, 9, 2), {}),
}


@pytest.mark.parametrize("name", ZOO)
def test_positive_networks_without_biases_are_their_own_path_sums(name):
    """Weights and inputs positive, ReLUs open, biases 0: the sum over paths is the output."""
    model, shape, options = ZOO[name]
    network = nts.linen(model, shape, **options)
    random = np.random.default_rng(0)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.float32((path[-1].key != "bias") * random.uniform(size=leaf.shape)),
        jax.eval_shape(network.init, jax.random.key(0)),
    )
    inputs = np.float32(random.uniform(size=(2, *shape)))
    got, want = jax.jit(
        lambda params: (
            _paths.evaluate(network.apply_running, params, inputs, factor=jnp.abs),
            network.apply_running(params, inputs),
        )
    )(params)
    np.testing.assert_allclose(np.asarray(got.array) * 2.0 ** float(got.exponent), want, rtol=1e-4)


def test_constants_begin_no_path():
    def apply(params, x):
        return (jax.nn.relu(x @ params["w"] + 3.0) - 5.0) / 2.0 + params["b"]

    params = {"w": jnp.array([[2.0], [-4.0]]), "b": jnp.array([7.0])}
    assert path_sum(apply, params, jnp.ones((1, 2))).tolist() == [[3.0]]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_is_its_turns_one_after_the_other(reverse):
    def scanned(params, x):
        def turn(x, kernel):
            x = jax.nn.relu(x @ kernel)
            return x, x.sum(-1, keepdims=True)

        x, sums = jax.lax.scan(turn, x, params, reverse=reverse)
        return x + 2 * sums[0]

    def apart(params, x):
        sums = []
        for kernel in params[::-1] if reverse else params:
            x = jax.nn.relu(x @ kernel)
            sums.append(x.sum(-1, keepdims=True))
        return x + 2 * sums[-1 if reverse else 0]

    params = jnp.array([[[1.0, -2.0], [3.0, 4.0]], [[-5.0, 6.0], [7.0, 8.0]]])
    inputs = jnp.ones((1, 2))
    found = path_sum(scanned, params, inputs)
    np.testing.assert_array_equal(found, path_sum(apart, params, inputs))
    gates = [_paths.gates(apply, params, inputs) for apply in (scanned, apart)]
    np.testing.assert_array_equal(*gates)


@pytest.mark.parametrize(
    "activation", [nn.relu, jnp.tanh, nn.silu, nn.leaky_relu, nn.elu, nn.relu6]
)
def test_activations_become_the_gate(activation):
    params = {"w": jnp.array([[1.0, -1.0]]), "v": jnp.array([[3.0], [5.0]])}

    def apply(params, x):
        return activation(x @ params["w"]) @ params["v"]

    inputs = jnp.ones((1, 1))
    (gate,) = _paths.gates(apply, params, inputs)
    assert gate.tolist() == [[True, False]]
    assert path_sum(apply, params, inputs, gate=lambda x: x * gate).tolist() == [[3.0]]


def test_gates_are_those_of_the_real_network():
    """Biases, statistics and shortcuts count there."""
    network = oracles.conv_bn(4, 5)
    params = network.init(jax.random.key(0))
    params["BatchNorm_0"]["bias"] = jax.random.normal(jax.random.key(3), (4,))
    inputs = jax.random.normal(jax.random.key(1), (3, 6, 6, 2))
    found = jax.jit(lambda p, x: _paths.gates(network.apply_running, p, x))(params, inputs)
    first = nn.Conv(4, (3, 3), use_bias=False).apply({"params": params["Conv_0"]}, inputs)
    want = first / np.sqrt(1 + 1e-5) + params["BatchNorm_0"]["bias"] > 0
    assert [gate.shape for gate in found] == [(3, 6, 6, 4), (3, 6, 6, 5)]
    np.testing.assert_array_equal(found[0], want)


@pytest.mark.parametrize(
    ("apply", "match"),
    [
        (lambda p, x: x @ p["w"] * x.sum(), "'mul' of 2 value"),
        (lambda p, x: jax.nn.softmax(x @ p["w"]), "'exp' of 1 value"),
        (lambda p, x: nn.LayerNorm().apply({"params": {"scale": p["b"], "bias": p["b"]}}, x), "of"),
        (lambda p, x: p["w"], "does not depend on the inputs"),
    ],
)
def test_what_is_no_sum_over_paths(apply, match):
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=f"apply: .*{match}"):
        _paths.evaluate(apply, params, jnp.ones((1, 2)), factor=jnp.abs)


def test_signs_are_factors():
    """Unary minus, and the difference of two activations, go through `factor` like any constant."""
    params = {"w": jnp.array([[2.0]]), "v": jnp.array([[5.0]])}
    x = jnp.ones((1, 1))
    networks_and_sums = [
        (lambda p, x: -(x @ p["w"]), -2.0, 2.0),
        (lambda p, x: x @ p["w"] - x @ p["v"], -3.0, 7.0),
        (lambda p, x: 3.0 - x @ p["w"], -2.0, 2.0),
    ]
    for apply, signed, absolute in networks_and_sums:
        for factor, want in ((lambda c: c, signed), (jnp.abs, absolute)):
            assert path_sum(apply, params, x, factor=factor).item() == want


def test_a_dead_branch_decides_no_scale():
    """Beside a skip that is cut off, a deep branch of tiny weights keeps its value and gradient."""

    def apply(params, x):
        y = x
        for w in params["deep"]:
            y = y @ w
        return y + x @ params["skip"]

    params = {"deep": [jnp.full((4, 4), 1e-3)] * 20, "skip": jnp.zeros((4, 4))}

    def total(params):
        return _paths.total(_paths.evaluate(apply, params, jnp.ones((1, 4)), factor=jnp.abs))

    value, gradient = jax.jit(jax.value_and_grad(total))(params)
    assert value > 0 and np.all(np.asarray(gradient["deep"][0]) > 0)


def test_a_maximum_may_be_taken_as_a_sum():
    """Every path through a maximum counts: of a window, over an axis, of two branches."""

    def apply(params, x):
        y = jnp.maximum(x @ params["w"], x @ params["v"])
        return jnp.max(y, axis=1, keepdims=True)

    params = {"w": jnp.array([[1.0, 2.0]]), "v": jnp.array([[4.0, 3.0]])}
    assert path_sum(apply, params, jnp.ones((1, 1)), sum_pools=True).item() == 10.0


def test_far_beyond_float32():
    """A product of 50 weights of 1000 has its power of two beside it, and an exact derivative."""
    params = [jnp.array([[1000.0]])] * 50

    def apply(params, x):
        for w in params:
            x = x @ w
        return x

    def total(params):
        return _paths.total(_paths.evaluate(apply, params, jnp.ones((1, 1)), factor=jnp.abs))

    got = _paths.evaluate(apply, params, jnp.ones((1, 1)), factor=jnp.abs)
    power = float(got.exponent) + np.log2(float(got.array[0, 0]))
    assert power == pytest.approx(50 * np.log2(1000), abs=1e-3)
    gradients = [float((g * w)[0, 0]) for g, w in zip(jax.grad(total)(params), params, strict=True)]
    np.testing.assert_allclose(gradients, gradients[0], rtol=1e-6)
    assert np.isfinite(gradients[0]) and gradients[0] > 0
