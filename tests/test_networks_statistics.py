"""Normalisation other than Flax's plain BatchNorm: the batch's statistics, held constant."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.linen import partitioning

import ntksap_jax as nts
from ntksap_jax import connectivity, criteria, masks, structured

KEY = jax.random.key(0)
INPUTS = 30 + 5 * jax.random.normal(jax.random.key(1), (7, 3))


def normalised(x, *, constant=True):
    """What batch normalisation without scale and bias makes of x."""
    kept = jax.lax.stop_gradient(x) if constant else x
    return (x - kept.mean(0)) / jnp.sqrt(kept.var(0) + 1e-5)


def assert_normalises(network, params, hidden):
    """Holds a network to `normalised(hidden(params, inputs))`, in values and derivatives.

    By running averages it may do whatever its layers do: returned for the caller to look at.
    """

    def outputs(p):
        h = hidden(p, INPUTS)
        calibrated = network.calibrate(p, INPUTS)
        want = (normalised(h), normalised(h), normalised(h, constant=False))
        return want, [fn(p, INPUTS) for fn in (network.apply, calibrated, network.apply_train)]

    @jax.jit
    def everything(p):
        tangent = jax.tree.map(jnp.ones_like, p)
        return jax.jvp(outputs, (p,), (tangent,)), network.apply_running(p, INPUTS)

    values_and_tangents, running = everything(params)
    for want, found in values_and_tangents:
        np.testing.assert_allclose(jnp.array(found), jnp.array(want), rtol=1e-3, atol=1e-3)
    return running


# -- Layers of the user's own ----------------------------------------------------------------------


class OwnNorm(nn.Module):
    """Keeps averages under names of its own, which start elsewhere than at 0 and 1."""

    collection: str = "moving"

    @nn.compact
    def __call__(self, x, train=False):
        size = x.shape[-1:]
        average = self.variable(self.collection, "average", lambda: jnp.full(size, 2.0))
        square = self.variable(self.collection, "square", lambda: jnp.full(size, 8.0))
        if train:
            mean, var = x.mean(0), x.var(0)
            average.value = 0.9 * average.value + 0.1 * mean
            square.value = 0.9 * square.value + 0.1 * (var + mean**2)
        else:
            mean, var = average.value, square.value - average.value**2
        one = self.variable(self.collection, "one", lambda: jnp.ones(()))  # no statistic
        return (x - mean) / jnp.sqrt(var + 1e-5) * one.value


class OwnNormNet(nn.Module):
    collection: str = "moving"

    @nn.compact
    def __call__(self, x, train=False):
        return OwnNorm(self.collection)(nn.Dense(4, name="dense")(x), train)


def dense(params, x):
    return x @ params["dense"]["kernel"] + params["dense"]["bias"]


def test_a_linen_layer_of_the_users_own():
    network = nts.linen(OwnNormNet(), (3,), training={"train": True})
    params = network.init(KEY)
    running = assert_normalises(network, params, dense)
    np.testing.assert_allclose(running, (dense(params, INPUTS) - 2) / 2, rtol=1e-4)
    trained = {"OwnNorm_0": {"average": jnp.zeros(4), "square": jnp.ones(4), "one": jnp.ones(())}}
    network = nts.linen(OwnNormNet(), (3,), training={"train": True}, batch_stats=trained)
    running = jax.jit(network.apply_running)(params, INPUTS)
    np.testing.assert_allclose(running, dense(params, INPUTS), rtol=1e-4)


class OwnNnxNorm(nnx.Module):
    """A mean of the user's own, and a table of constants that no training call changes."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 4, rngs=rngs)
        self.mean = nnx.BatchStat(jnp.full(4, 2.0))
        self.table = nnx.Variable(jnp.linspace(0.1, 0.7, 4))
        self.use_running_average = False

    def __call__(self, x):
        x = self.dense(x)
        mean = self.mean[...] if self.use_running_average else x.mean(0)
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * mean
        return x - mean + self.table[...]


def test_an_nnx_layer_of_the_users_own():
    network = nts.nnx(OwnNnxNorm, (3,), training={})
    params = network.init(KEY)
    hidden = dense(params, INPUTS)
    table = np.linspace(0.1, 0.7, 4)
    got = jax.jit(network.apply)(params, INPUTS)
    np.testing.assert_allclose(got, hidden - hidden.mean(0) + table, rtol=1e-4, atol=1e-4)
    got = jax.jit(network.apply_running)(params, INPUTS)
    np.testing.assert_allclose(got, hidden - 2 + table, rtol=1e-4, atol=1e-4)


def test_state_of_any_other_framework():
    """Averages with and without the bias of their start, cumulative ones, counters, constants."""

    def train(params, state, x):
        h = dense(params, x)
        count = state["count"] + 1
        hidden = 0.3 * state["hidden"] + 0.7 * h.mean(0)
        new = {
            "mean": 0.99 * state["mean"] + 0.01 * h.mean(0),
            "hidden": hidden,
            "debiased": hidden / (1 - 0.3**count),
            "sum": state["sum"] + h.var(0),
            "count": count,
            "constant": state["constant"],
        }
        return normalised(h, constant=False), new

    def evaluate(params, state, x):
        corrected = state["hidden"] / (1 - 0.3 ** state["count"])
        means = jnp.stack([state["mean"], state["debiased"], corrected])
        var = state["sum"] / state["count"] * state["constant"] / 0.1
        return (dense(params, x) - means.mean(0)) / jnp.sqrt(var + 1e-5)

    zeros = dict.fromkeys(("mean", "hidden", "debiased", "sum"), jnp.zeros(4))
    state = {**zeros, "count": jnp.array(0), "constant": jnp.array(0.1)}
    init = nts.linen(OwnNormNet(), (3,), training={"train": True}).init
    network = nts.plain(init, evaluate, (3,), state=state, train=train)
    assert_normalises(network, network.init(KEY), dense)


def test_haiku():
    hk = pytest.importorskip("haiku")

    def forward(x, is_training):
        return hk.BatchNorm(False, False, 0.9)(hk.Linear(4, name="dense")(x), is_training)

    model = hk.without_apply_rng(hk.transform_with_state(forward))
    _, state = jax.jit(model.init, static_argnums=2)(KEY, INPUTS, True)
    network = nts.plain(
        lambda key: model.init(key, INPUTS, True)[0],
        lambda params, state, x: model.apply(params, state, x, False)[0],
        (3,),
        state=state,
        train=lambda params, state, x: model.apply(params, state, x, True),
    )
    params = network.init(KEY)
    assert set(masks.leaf_paths(masks.create(params))) == {"dense/w"}
    assert_normalises(network, params, lambda p, x: x @ p["dense"]["w"] + p["dense"]["b"])


class EquinoxNet(eqx.Module):
    dense: eqx.nn.Linear
    norm: eqx.nn.BatchNorm

    def __init__(self, key):
        self.dense = eqx.nn.Linear(3, 4, key=key)
        self.norm = eqx.nn.BatchNorm(4, "batch", channelwise_affine=False, mode="batch")

    def __call__(self, x, state):
        return self.norm(self.dense(x), state)


def test_equinox():
    model, state = eqx.nn.make_with_state(EquinoxNet)(KEY)
    static = eqx.filter(model, eqx.is_inexact_array, inverse=True)

    def init(key):
        return eqx.filter(eqx.nn.make_with_state(EquinoxNet)(key)[0], eqx.is_inexact_array)

    def call(params, state, inputs, *, inference):
        model = eqx.nn.inference_mode(eqx.combine(params, static), inference)
        batched = jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="batch")
        return batched(inputs, state)

    network = nts.plain(
        init,
        lambda params, state, x: call(params, state, x, inference=True)[0],
        (3,),
        state=state,
        train=lambda params, state, x: call(params, state, x, inference=False),
    )
    assert_normalises(network, network.init(KEY), lambda p, x: x @ p.dense.weight.T + p.dense.bias)


# -- nn.BatchNorm in unusual places ----------------------------------------------------------------


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))
        return nn.relu(x), None


class Affine(nn.BatchNorm):
    """Changes its inputs before it normalises them."""

    @nn.compact
    def __call__(self, x, use_running_average=None):
        return super().__call__(x**2, use_running_average)


class Scanned(nn.Module):
    """Stacked layers, traced more than once, and a subclass."""

    @nn.compact
    def __call__(self, x, train=False):
        axes = {"params": 0, "batch_stats": 0}
        split = {"params": True}
        layers = nn.scan(
            nn.remat(Layer, static_argnums=2),
            variable_axes=axes,
            split_rngs=split,
            in_axes=nn.broadcast,
            length=2,
        )
        x, _ = layers()(x, train)
        return Affine()(x, not train)


def test_batch_norm_in_scanned_layers_and_in_a_subclass():
    network = nts.linen(Scanned(), (3,), train=False)
    params = network.init(KEY)

    def training_mode(params, x):
        return Scanned().apply({"params": params}, x, train=True, mutable=["batch_stats"])[0]

    fns = (training_mode, network.apply, network.calibrate(params, INPUTS), network.apply_train)
    want, *found = jax.jit(lambda p: [fn(p, INPUTS) for fn in fns])(params)
    for each in found:
        np.testing.assert_allclose(each, want, rtol=1e-3, atol=1e-3)


# -- What is refused -------------------------------------------------------------------------------


class Spectral(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.SpectralNorm(nn.Dense(2))(x, update_stats=train)


class CallNorm(nnx.Module):
    """Running averages that nothing but their name tells from a constant."""

    def __init__(self, rngs):
        self.running_mean = nnx.Variable(jnp.zeros(3))

    def __call__(self, x, train=False):
        return x - (x.mean(0) if train else self.running_mean[...])


def spectral_nnx(rngs):
    return nnx.SpectralNorm(nnx.Linear(3, 2, rngs=rngs), rngs=rngs)


class Mutable(nn.Module):
    """Knows training by its collection."""

    @nn.compact
    def __call__(self, x):
        average = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        if not self.is_mutable_collection("batch_stats"):
            return nn.Dense(2)(x - average.value)
        average.value = 0.9 * average.value + 0.1 * x.mean(0)
        return nn.Dense(2)(x - x.mean(0))


IN_BATCH_STATS = OwnNormNet("batch_stats")
REFUSED = {
    "linen": (
        nts.linen,
        IN_BATCH_STATS,
        {},
        "'batch_stats/OwnNorm_0/average' .*training={'train': True}",
    ),
    "collection": (nts.linen, OwnNormNet(), {}, "'moving/OwnNorm_0/.*training={'train': True}"),
    "mutable": (nts.linen, Mutable(), {}, "'batch_stats/mean'.*training="),
    "not training": (nts.linen, OwnNormNet(), {"training": {}}, "'moving/.* mean training"),
    "in training": (nts.linen, IN_BATCH_STATS, {"train": True}, "arguments that mean evaluation"),
    "weights'": (nts.linen, Spectral(), {}, "SpectralNorm_0/Dense_0/kernel/u'.*jax.plain"),
    "weights', training": (
        nts.linen,
        Spectral(),
        {"training": {"train": True}},
        "even when it is called as in training.*jax.plain",
    ),
    "nnx": (nts.nnx, OwnNnxNorm, {}, "depend on 'mean'.*training={}"),
    "nnx by call": (nts.nnx, CallNorm, {}, "depend on 'running_mean'.*training={}"),
    "nnx weights'": (nts.nnx, spectral_nnx, {}, "'u'.*running average.*jax.plain"),
}


@pytest.mark.parametrize(("make", "model", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_running_averages_are_never_used_in_silence(make, model, options, message):
    with pytest.raises(ValueError, match=message):
        make(model, (3,), **options)


def test_collections_that_outputs_do_not_depend_on_are_left_alone():
    """Losses of a layer, axes' names of params."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(True)(nn.Dense(4)(x))
            self.sow("losses", "square", x**2)
            init = nn.initializers.lecun_normal()
            kernel = partitioning.param_with_axes("kernel", init, (x.shape[-1], 2), axes=("a", "b"))
            return x @ kernel

    assert structured.trace(Net(), (3,)).layers["Dense_0/kernel"].removable
    network = nts.linen(Net(), (3,))
    params = network.init(KEY)

    @jax.jit
    def outputs(params):
        calibrated = network.calibrate(params, INPUTS)
        return [fn(params, INPUTS) for fn in (network.apply, calibrated, network.apply_running)]

    hidden = INPUTS @ params["Dense_0"]["kernel"]
    for got, h in zip(outputs(params), [normalised(hidden)] * 2 + [hidden], strict=True):
        np.testing.assert_allclose(got, h @ params["kernel"], rtol=1e-3, atol=1e-3)


def test_plain_functions_need_state_and_training_call():
    with pytest.raises(ValueError, match="train: returns a state of the form"):
        nts.plain(
            lambda key: {}, lambda p, s, x: x, (3,), state=(0.0,), train=lambda p, s, x: (x, {})
        )
    with pytest.raises(ValueError, match="train: got None, but state is given"):
        nts.plain(lambda key: {}, lambda p, s, x: x, (3,), state=jnp.zeros(3))


def test_connectivity_refuses_kernels_that_are_normalised():
    """A derivative through their norm would call them dead."""
    network = nts.linen(nn.Sequential([nn.WeightNorm(nn.Dense(3)), nn.relu, nn.Dense(2)]), (3,))
    mask = masks.create(jax.eval_shape(network.init, KEY))
    with pytest.raises(ValueError, match="'layers_0/layer_instance/kernel'.*as they are"):
        connectivity.analyse(network, mask)


def test_recurrent_cells_of_nnx_that_start_from_zeros():
    """They take a random number for it and make nothing of it."""

    def make(rngs):
        return nnx.RNN(nnx.GRUCell(3, 2, rngs=rngs))

    network = nts.nnx(make, (2, 3))
    x = jnp.ones((1, 2, 3))
    model = make(nnx.Rngs(KEY))
    np.testing.assert_allclose(
        network.apply(nts.exchange.nnx_params(model), x), model(x), rtol=1e-4, atol=1e-5
    )
    score = criteria.ntk_sap(network, num_samples=1, batch_size=2)
    params = network.init(KEY)
    scores, _ = score(KEY, params, masks.create(params), None)
    assert all(np.all(leaf > 0) for leaf in jax.tree.leaves(scores))
