"""nnx models as pure functions: weights, statistics, structure."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ntksap_jax as nts
from ntksap_jax import criteria, exchange, masks

KEY = jax.random.key(0)
# What Flax before 0.12 does with lists in a module, and knows no name for.
List = getattr(nnx, "List", list)
INPUTS = 2 * jax.random.normal(jax.random.key(1), (5, 6, 6, 2)) + 1


class Net(nnx.Module):
    """Lists, dropout and batch normalisation."""

    def __init__(self, rngs):
        sizes = [2, 4, 3]
        self.convs = List(
            [nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in zip(sizes, sizes[1:], strict=False)]
        )
        self.norms = List([nnx.BatchNorm(size, rngs=rngs) for size in sizes[1:]])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.dropout(nnx.relu(norm(conv(x))))
        return self.head(x.mean((1, 2)))


@pytest.fixture(scope="module")
def network():
    return nts.nnx(Net, (6, 6, 2))


def test_init_draws_the_models_own_weights(network):
    model = Net(nnx.Rngs(KEY))
    params = network.init(KEY)
    want = exchange.nnx_params(model)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, want)
    assert list(masks.leaf_paths(params))[:2] == ["convs/0/bias", "convs/0/kernel"]
    other = network.init(jax.random.key(1))
    assert not np.allclose(other["head"]["kernel"], params["head"]["kernel"])
    legacy = network.init(jax.random.PRNGKey(0))
    np.testing.assert_array_equal(legacy["head"]["kernel"], params["head"]["kernel"])


def test_the_users_model_is_left_alone():
    model = Net(nnx.Rngs(0))
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey))))
    graph = nnx.graphdef(model)
    params = exchange.nnx_params(model)
    exchange.nnx_batch_stats(model)
    network = nts.nnx(Net, (6, 6, 2))
    jax.eval_shape(lambda p: network.calibrate(p, INPUTS, unbiased=True)(p, INPUTS), params)
    assert nnx.graphdef(model) == graph
    after = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    fresh = Net(nnx.Rngs(0))
    assert type(fresh.norms[0]) is nnx.BatchNorm
    assert fresh.convs[0].conv_general_dilated is jax.lax.conv_general_dilated


def test_a_trained_model_by_its_running_statistics():
    """And by those of the batch, which are what its training mode normalises with."""
    model = Net(nnx.Rngs(0))
    model.dropout.eval()
    model(INPUTS)  # moves the averages
    stats = exchange.nnx_batch_stats(model)
    assert not np.allclose(stats["norms"][0]["mean"], 0)
    network = nts.nnx(Net, (6, 6, 2), batch_stats=stats)
    params = exchange.nnx_params(model)
    want = model(INPUTS)
    batch, running = jax.jit(
        lambda p: (network.apply(p, INPUTS), network.apply_running(p, INPUTS))
    )(params)
    np.testing.assert_allclose(batch, want, rtol=1e-3, atol=1e-4)
    nnx.update(model, stats)
    model.eval()
    want = model(INPUTS)
    np.testing.assert_allclose(running, want, rtol=1e-4, atol=1e-5)
    untrained = jax.jit(nts.nnx(Net, (6, 6, 2)).apply_running)(params, INPUTS)
    fresh = Net(nnx.Rngs(0))
    fresh.eval()
    np.testing.assert_allclose(untrained, fresh(INPUTS), rtol=1e-4, atol=1e-5)


def test_pruned_params_go_back_into_the_model(tmp_path):
    model = Net(nnx.Rngs(0))
    params = exchange.nnx_params(model)
    mask, _ = nts.prune(KEY, params, criteria.magnitude(), schedule=[0.2])
    masks.save(tmp_path / "mask.safetensors", mask)
    mask = masks.load(tmp_path / "mask.safetensors", like=params)
    nnx.update(model, masks.apply(mask, params))
    kernel = model.convs[0].kernel[...]
    np.testing.assert_array_equal(kernel == 0, ~np.asarray(mask["convs"][0]["kernel"]))
    assert masks.leaf_paths(mask).keys() >= {"convs/1/kernel", "head/kernel"}


def test_convolutions_are_ours_unless_the_model_has_its_own():
    def convolution(*args, out_sharding=None, **kwargs):
        return 0 * jax.lax.conv_general_dilated(*args, **kwargs)

    def make(rngs):
        return nnx.Conv(2, 4, (3, 3), conv_general_dilated=convolution, rngs=rngs)

    for network, expected in (
        (nts.nnx(lambda rngs: nnx.Conv(2, 4, (3, 3), rngs=rngs), (6, 6, 2)), "conv2d"),
        (nts.nnx(make, (6, 6, 2)), "conv_general_dilated"),
    ):
        program = str(jax.make_jaxpr(network.apply)(network.init(KEY), INPUTS))
        assert re.findall(r"= (conv2d|conv_general_dilated)\[", program) == [expected]


def test_statistics_of_float64_are_float64():
    with jax.enable_x64(True):
        network = nts.nnx(lambda rngs: nnx.BatchNorm(3, rngs=rngs), (3,), dtype=jnp.float64)
        x = 1 + jax.random.normal(KEY, (5, 3), jnp.float64)
        got = np.asarray(jax.jit(network.apply)(network.init(KEY), x))
        x = np.asarray(x)
    np.testing.assert_allclose(got, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), rtol=1e-10)


class OwnNorm(nnx.BatchNorm):
    """A BatchNorm of the user's, which changes its inputs first."""

    def __call__(self, x):
        return super().__call__(3 * x + 1)


class Table(nnx.Module):
    """Variables that are no params; weights shared by calling twice; layers under `nnx.remat`."""

    def __init__(self, rngs):
        self.table = nnx.Variable(jnp.arange(4.0))
        self.array = np.ones(4, np.float32)
        self.layer = nnx.Linear(4, 4, rngs=rngs)
        self.norm = OwnNorm(4, rngs=rngs)

    def __call__(self, x):
        x = nnx.remat(lambda layer, x: layer(x))(self.layer, x + self.table[...])
        return self.norm(self.layer(x) + self.array)


def test_constants_shared_calls_transforms_and_subclasses():
    network = nts.nnx(Table, (4,))
    params = network.init(KEY)
    assert set(masks.leaf_paths(masks.create(params))) == {"layer/kernel"}
    x = jax.random.normal(KEY, (6, 4))
    model = Table(nnx.Rngs(KEY))
    want = model(x)  # training mode
    tangent = jax.tree.map(jnp.ones_like, params)

    def evaluate(params):
        calibrated = network.calibrate(jax.lax.stop_gradient(params), x)
        return [fn(params, x) for fn in (network.apply, network.apply_train, calibrated)]

    values, tangents = jax.jit(lambda p: jax.jvp(evaluate, (p,), (tangent,)))(params)
    for value in values:
        np.testing.assert_allclose(value, want, rtol=1e-3, atol=1e-4)
    held, through, _ = tangents
    assert np.linalg.norm(held - through) > 0.1 * np.linalg.norm(held)


def test_one_program_under_jit_vmap_and_scan(network):
    keys = jax.random.split(KEY, 3)

    def one(key):
        return network.apply(network.init(key), INPUTS).sum()

    want = [jax.jit(one)(key) for key in keys]
    _, scanned = jax.lax.scan(lambda carry, key: (carry, one(key)), None, keys)
    for found in (jax.jit(jax.vmap(one))(keys), scanned):
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)


def test_call_arguments_are_passed_on():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x, *, scale):
            return scale * self.layer(x)

    one, two = (nts.nnx(Model, (3,), scale=scale) for scale in (1, 2))
    params = one.init(KEY)
    x = jnp.ones((1, 3))
    np.testing.assert_array_equal(2 * one.apply(params, x), two.apply(params, x))


def test_params_of_another_model(network):
    with pytest.raises(ValueError, match=r"params: a tree of other leaves.*nnx_params"):
        network.apply({"head": {"kernel": jnp.ones((3, 2))}}, INPUTS)
    with pytest.raises(ValueError, match=r"batch_stats: leaf 'norms/0/mean' has shape \(7,\)"):
        stats = {"norms": {0: {"mean": jnp.zeros(7), "var": jnp.ones(4)}}}
        nts.nnx(Net, (6, 6, 2), batch_stats=stats)
    for function in (exchange.nnx_params, exchange.nnx_batch_stats):
        with pytest.raises(TypeError, match="model: got dict, expected a flax.nnx model"):
            function({})
