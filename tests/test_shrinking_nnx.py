"""Shrunk nnx models compute what the zeroed ones do, and have the channels of their linen twins.

Functions, whose params alone get smaller, too.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ntksap_jax
from ntksap_jax import criteria, exchange, masks, structured

X = jax.random.normal(jax.random.key(7), (3, 8, 8, 3))


class Block(nnx.Module):
    """A residual block with a depthwise convolution."""

    def __init__(self, inputs, features, *, rngs):
        self.conv = nnx.Conv(inputs, features, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(features, rngs=rngs)
        self.depthwise = nnx.Conv(
            features, features, (3, 3), feature_group_count=features, rngs=rngs
        )
        self.project = nnx.Conv(inputs, features, (1, 1), rngs=rngs)

    def __call__(self, x):
        return self.depthwise(nnx.relu(self.norm(self.conv(x)))) + self.project(x)


class Net(nnx.Module):
    def __init__(self, *, rngs):
        self.blocks = nnx.List([Block(3, 8, rngs=rngs), Block(8, 6, rngs=rngs)])
        self.up = nnx.ConvTranspose(6, 5, (2, 2), rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(5 + 6, 4, rngs=rngs)

    def features(self, x):
        for block in self.blocks:
            x = nnx.relu(block(x))
        both = jnp.concatenate([nnx.relu(self.up(x)), x], axis=-1)
        return both.mean((1, 2))

    def __call__(self, x):
        return self.head(self.dropout(self.features(x)))


class LinenBlock(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(self.features, (3, 3), use_bias=False, name="conv")(x)
        y = nn.relu(nn.BatchNorm(use_running_average=True, name="norm", epsilon=1e-5)(y))
        groups = self.features
        y = nn.Conv(self.features, (3, 3), feature_group_count=groups, name="depthwise")(y)
        return y + nn.Conv(self.features, (1, 1), name="project")(x)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        for index, features in enumerate((8, 6)):
            x = nn.relu(LinenBlock(features, name=f"blocks_{index}")(x))
        both = jnp.concatenate([nn.relu(nn.ConvTranspose(5, (2, 2), name="up")(x)), x], axis=-1)
        return nn.Dense(4, name="head")(both.mean((1, 2)))


def variables_of(model):
    params, batch_stats = exchange.nnx_params(model), exchange.nnx_batch_stats(model)
    return {"params": params, "batch_stats": batch_stats}


def holding(model, variables):
    graphdef, state = nnx.split(model)
    copy = nnx.merge(graphdef, jax.tree.map(jnp.copy, state))
    for values in variables.values():
        nnx.update(copy, values)
    return copy


@pytest.fixture(scope="module")
def shrunk():
    """A model with running averages of its own, zeroed and shrunk."""
    model = Net(rngs=nnx.Rngs(0))
    model(X)  # in training mode, so that the averages are some
    model.eval()
    channels = structured.trace(model, (8, 8, 3))
    variables = variables_of(model)
    keep = structured.select_global(
        structured.l1(variables["params"], channels), channels, density=0.5
    )
    zeroed = structured.zero_out(variables, channels, keep)
    small, fewer = structured.shrink(model, zeroed, channels, keep)
    return model, holding(model, zeroed), small, fewer, channels


def test_it_computes_what_the_zeroed_one_does(shrunk):
    model, zeroed, small, _, _ = shrunk
    assert np.max(np.abs(model(X) - zeroed(X))) > 1e-3
    np.testing.assert_allclose(small(X), zeroed(X), rtol=0, atol=1e-6)
    np.testing.assert_allclose(small.features(X), zeroed.features(X)[:, kept(zeroed, X)], atol=1e-6)


def kept(model, x):
    """Which features are alive."""
    return np.any(np.asarray(model.features(x)) != 0, axis=0)


def test_its_layers_say_their_sizes(shrunk):
    _, _, small, _, _ = shrunk
    for _, layer in nnx.iter_graph(small):
        if isinstance(layer, nnx.Conv):
            width = layer.kernel.shape[-2] * layer.feature_group_count
            assert (layer.in_features, layer.out_features) == (width, layer.kernel.shape[-1])
            assert layer.kernel_shape == layer.kernel.shape
        if isinstance(layer, nnx.BatchNorm):
            assert layer.num_features == layer.scale.shape[0] == layer.mean.shape[0]
    assert small.head.in_features == small.head.kernel.shape[0] < 11
    assert small.blocks[0].depthwise.feature_group_count == small.blocks[0].depthwise.out_features


def test_the_model_itself_stays_as_it_was(shrunk):
    model, _, _, _, channels = shrunk
    shapes = {path: leaf.shape for path, leaf in masks.leaf_paths(variables_of(model)).items()}
    assert shapes == channels.shapes


def test_the_channels_are_those_of_the_linen_twin(shrunk):
    twin = structured.trace(LinenNet(), (8, 8, 3))
    channels = shrunk[-1]

    def by_twin(found):
        return {path.replace("blocks/", "blocks_"): value for path, value in found.items()}

    assert by_twin(channels.flops) == twin.flops
    assert by_twin(channels.reasons) == twin.reasons
    assert by_twin(channels.shapes) == twin.shapes
    assert [layer.bias for layer in channels.layers.values()] == [
        layer.bias and layer.bias.replace("blocks_", "blocks/") for layer in twin.layers.values()
    ]
    mine, others = by_twin(channels.labels), twin.labels
    assert mine.keys() == others.keys()
    for path, axes in mine.items():
        for one, other in zip(axes, others[path], strict=True):
            np.testing.assert_array_equal(one, other, err_msg=path)


def test_it_trains_is_saved_and_shrinks_again(shrunk, tmp_path):
    model, _, small, _, channels = shrunk
    small.train()
    optimizer = nnx.Optimizer(small, optax.sgd(0.1), wrt=nnx.Param)

    def loss(small):
        return jnp.mean(small(X) ** 2)

    before = small.blocks[0].norm.mean[...]
    value, grads = nnx.value_and_grad(loss)(small)
    optimizer.update(small, grads)
    assert np.any(before != small.blocks[0].norm.mean[...])  # training mode is training mode
    small.eval()
    assert loss(small) < value

    structured.save(tmp_path / "small.safetensors", small)
    read, variables = structured.load(tmp_path / "small.safetensors", model)
    np.testing.assert_array_equal(read(X), small(X))
    assert masks.leaf_paths(variables).keys() == channels.shapes.keys()

    smaller, _ = structured.prune_model(
        jax.random.key(0), small, None, structured.l1, 0.5, input_shape=(8, 8, 3)
    )
    costs = [
        structured.cost(structured.trace(one, (8, 8, 3))).flops for one in (model, small, smaller)
    ]
    assert costs[0] > costs[1] >= 2 * costs[2]
    with pytest.raises(ValueError, match="path: .* holds another model: the file lacks"):
        structured.load(tmp_path / "small.safetensors", Another(rngs=nnx.Rngs(0)))


class Another(Net):
    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.more = nnx.Linear(2, 2, rngs=rngs)


def test_criteria_choose_filters():
    def make(rngs):
        return nnx.Sequential(nnx.Linear(6, 12, rngs=rngs), nnx.relu, nnx.Linear(12, 3, rngs=rngs))

    network = ntksap_jax.nnx(make, (6,))
    small, fewer = structured.prune_model(
        *(jax.random.key(0), make(nnx.Rngs(0)), None),
        *(criteria.ntk_sap(network, signed=True), 0.4),
        input_shape=(6,),
    )
    assert small(jnp.ones((2, 6))).shape == (2, 3)
    assert fewer["params"]["layers"][0]["kernel"].shape[1] <= 5


def test_tpp_takes_a_step_as_on_the_params_alone():
    model = nnx.Sequential(
        nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(4, 2, rngs=nnx.Rngs(1))
    )
    channels = structured.trace(model, (3,))
    keep = {"layers/0/kernel": np.array([True, False, True, False])}
    settings = structured.tpp.Settings(
        update_interval=1, increment=0.5, stabilise_steps=4, zero_out_interval=2
    )
    transformation = structured.tpp.regularise(optax.sgd(0.1), channels, keep, settings)
    params = exchange.nnx_params(model)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = transformation.update(grads, transformation.init(params), params)
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    expected = masks.leaf_paths(optax.apply_updates(params, updates))
    for path, leaf in masks.leaf_paths(exchange.nnx_params(model)).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-6, err_msg=path)


def plain(params, x, *, power=1):
    hidden = jax.nn.relu(x @ params["first"]["w"] + params["first"]["b"]) ** power
    return hidden @ params["second"]["w"]


def test_functions_get_smaller_params():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "first": {"w": jax.random.normal(keys[0], (4, 6)), "b": jax.random.normal(keys[1], (6,))},
        "second": {"w": jax.random.normal(keys[2], (6, 2))},
    }
    x, variables = jnp.ones((3, 4)), {"params": params}
    channels = structured.trace(plain, (4,), params=params, power=2)
    keep = structured.select_global(structured.l1(params, channels), channels, density=0.5)
    zeroed = structured.zero_out(variables, channels, keep)
    small, fewer = structured.shrink(plain, zeroed, channels, keep)
    assert small is plain and fewer["params"]["second"]["w"].shape == (3, 2)
    np.testing.assert_allclose(
        small(fewer["params"], x, power=2), plain(zeroed["params"], x, power=2), rtol=1e-6
    )
    _, by_one_call = structured.prune_model(
        *(keys[0], plain, variables, structured.l1), 0.5, input_shape=(4,), power=2
    )
    jax.tree.map(np.testing.assert_array_equal, by_one_call, fewer)


@pytest.mark.parametrize(
    ("model", "params", "message"),
    [
        (plain, None, "params: got None, but `model` is a function"),
        (nn.Dense(2), {}, "params: only functions take them; Dense knows its own"),
        (nn.Dense, None, "model: got type, expected a flax.linen module"),
    ],
)
def test_params_belong_to_functions(model, params, message):
    with pytest.raises(TypeError, match=message):
        structured.trace(model, (4,), params=params)


class Counts(nnx.Module):
    """Its code divides by a number of channels that it was told."""

    def __init__(self, *, rngs):
        self.first = nnx.Linear(4, 6, rngs=rngs)
        self.second = nnx.Linear(6, 2, rngs=rngs)
        self.third = nnx.Linear(2, 2, rngs=rngs)
        self.width = 6

    def __call__(self, x, train=False):
        x = nnx.relu(self.first(x)).reshape(-1, self.width)
        return self.third(self.second(x))


class Trains(nnx.Module):
    def __init__(self, *, rngs):
        self.first = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)

    def __call__(self, x, train=True):
        return self.norm(self.first(x), use_running_average=not train)


def test_code_that_counts_channels_keeps_its_layer_whole():
    channels = structured.trace(Counts(rngs=nnx.Rngs(0)), (4,))
    assert "depends on how many there are" in channels.reasons["first/kernel"]
    assert "second/kernel" not in channels.reasons


@pytest.mark.parametrize(
    ("model", "kwargs", "message"),
    [
        (Trains, {"train": True}, "the call changes the running statistic 'norm/mean'"),
        (Trains, {"wrong": True}, "cannot be called with inputs of shape"),
    ],
)
def test_calls_that_cannot_be_followed_say_why(model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        structured.trace(model(rngs=nnx.Rngs(0)), (4,), **kwargs)


def test_reasons_name_the_place():
    class Gate(nnx.Module):
        def __init__(self, *, rngs):
            self.linear = nnx.Linear(4, 6, rngs=rngs)

        def __call__(self, x):
            return jnp.cumsum(self.linear(x), axis=-1)

    class Outer(nnx.Module):
        def __init__(self, *, rngs):
            self.gates = nnx.List([Gate(rngs=rngs)])
            self.head = nnx.Sequential(nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs))

        def __call__(self, x):
            return self.head(self.gates[0](x))

    channels = structured.trace(Outer(rngs=nnx.Rngs(0)), (4,))
    assert "gates/0" in channels.reasons["gates/0/linear/kernel"]
