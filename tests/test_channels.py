"""Channels found by tracing: which filters go together, which must stay and why."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntksap_jax import models
from ntksap_jax.structured import cost, expand, groups, trace
from ntksap_jax.structured.channels import filter_channels


def removable(channels):
    return [path for path, layer in channels.layers.items() if layer.removable]


def reason(channels, kernel):
    assert not channels.layers[kernel].removable
    return channels.reasons[kernel]


def net(call):
    """A compact module whose call is the function `call(x)`."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return call(x)

    return Net()


@functools.cache
def stream():
    return trace(models.ResNet((1, 2), 4, 5), (8, 8, 3), train=False)


# -- The library's families ----------------------------------------------------------------------


def test_mlp():
    channels = trace(models.mlp((6, 5), num_classes=3), (2, 2, 1))
    assert removable(channels) == ["hidden_0/kernel", "hidden_1/kernel"]
    assert groups(channels) == [("hidden_0/kernel",), ("hidden_1/kernel",)]
    assert [layer.index for layer in channels.layers.values()] == [0, 1, 2]
    first = channels.layers["hidden_0/kernel"]
    assert (first.bias, first.scale, first.mean) == ("hidden_0/bias", None, None)
    assert channels.labels["params/hidden_0/kernel"][0] is None
    expected = {"params/hidden_0/kernel": 1, "params/hidden_0/bias": 0, "params/hidden_1/kernel": 0}
    for path, axis in expected.items():
        np.testing.assert_array_equal(channels.labels[path][axis], np.arange(6))
    np.testing.assert_array_equal(channels.labels["params/fc/kernel"][0], 6 + np.arange(5))
    assert channels.labels["params/fc/bias"] == (None,)
    assert "outputs" in reason(channels, "fc/kernel")


def test_vgg_pairs_each_convolution_with_its_normalisation():
    channels = trace(models.VGG((2, "M", 3, 4)), (4, 4, 3), train=False)
    assert removable(channels) == [f"conv_{index}/kernel" for index in range(3)]
    for index in range(3):
        layer = channels.layers[f"conv_{index}/kernel"]
        assert (layer.scale, layer.shift) == (f"bn_{index}/scale", f"bn_{index}/bias")
        assert (layer.mean, layer.var) == (f"bn_{index}/mean", f"bn_{index}/var")
        assert layer.bias is None
        own = filter_channels(channels, layer.kernel)
        for path in ("params/{}/scale", "params/{}/bias", "batch_stats/{}/mean"):
            np.testing.assert_array_equal(channels.labels[path.format(f"bn_{index}")][0], own)


def test_option_a_keeps_the_residual_stream():
    """The zeros that its shortcut pads with are counted by its own code, on both sides alike."""
    channels = trace(models.ResNet((1, 2), 4, 5, shortcut="pad"), (8, 8, 3), train=False)
    assert removable(channels) == [f"block_{index}/conv1/kernel" for index in range(3)]
    assert "`pad`" in reason(channels, "block_0/conv2/kernel")
    assert "block_1" in reason(channels, "conv/kernel")


def test_projections_make_streams_of_tied_layers():
    assert groups(stream()) == [
        ("conv/kernel", "block_0/conv2/kernel"),
        ("block_0/conv1/kernel",),
        ("block_1/conv1/kernel",),
        ("block_1/conv2/kernel", "block_1/shortcut_conv/kernel", "block_2/conv2/kernel"),
        ("block_2/conv1/kernel",),
    ]
    for group in groups(stream()):
        numbers = [filter_channels(stream(), path) for path in group]
        assert all(np.array_equal(one, numbers[0]) for one in numbers)
    shortcut = stream().layers["block_1/shortcut_conv/kernel"]
    assert shortcut.scale == "block_1/shortcut_bn/scale"


def test_imagenet_resnet_ties_its_stem_and_first_stage_and_bottlenecks_shrink_inside():
    channels = trace(models.ImageNetResNet((2, 1), False, 4, 5), (16, 16, 3), train=False)
    blocks = [f"stage_1_block_{block}/conv2/kernel" for block in (0, 1)]
    assert groups(channels)[0] == ("conv/kernel", *blocks)
    assert all(layer.removable for path, layer in channels.layers.items() if path != "fc/kernel")
    channels = trace(models.ImageNetResNet((2,), True, 2, 5), (16, 16, 3), train=False)
    assert {path for path in removable(channels) if "block" in path} >= {
        f"stage_1_block_{block}/conv{conv}/kernel" for block in (0, 1) for conv in (1, 2)
    }


def test_a_layer_called_twice_counts_twice():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(4)
            x = nn.relu(nn.Dense(4)(x))
            return nn.Dense(2)(nn.relu(layer(nn.relu(layer(x)))))

    channels = trace(Twice(), (3,))
    assert cost(channels).flops == 2 * (3 * 4 + 4 * 4 * 2 + 4 * 2)
    # Its filters are its inputs, so they are those of the layer before, too.
    assert groups(channels) == [("Dense_1/kernel", "Dense_0/kernel")]
    assert cost(channels, {"Dense_0/kernel": np.arange(4) < 2}).flops == 2 * (6 + 8 + 4)


# -- What must stay, and why ---------------------------------------------------------------------


def around(layer):
    """Two dense layers with something between them, after one that can go in any case."""

    def call(x):
        x = nn.Dense(4, name="free")(x)
        x = nn.Dense(6, name="first")(nn.relu(x))
        return nn.Dense(3, name="last")(layer(x))

    return net(call)


class Transposed(nn.Module):
    """A kernel whose entries are 0 for a removed input, which 0 / 0 there does not care about."""

    size: int

    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", nn.initializers.ones, (6, self.size)).T


class Watched(nn.Module):
    """Keeps a number that nothing reads, unless "intermediates" are asked for."""

    @nn.compact
    def __call__(self, x):
        self.sow("intermediates", "spread", jnp.sum(nn.sigmoid(x), axis=-1))
        jnp.sort(x, axis=-1)
        return x


class Normalised(nn.Module):
    """Divides by running statistics that no filter's removal changes, or by what it does change."""

    size: int
    relu: bool = False

    @nn.compact
    def __call__(self, x):
        mean, var = (
            self.variable("batch_stats", name, lambda: jnp.ones((self.size,))).value
            for name in ("average", "variance")
        )
        centred = x - mean
        return x / (nn.relu(centred) if self.relu else jnp.sqrt(var + 1e-3))


def branches(x):
    """Both are read, which from which is a matter of the number of channels."""
    one, other = jnp.abs(x), jnp.square(x)
    return one - other if x.shape[-1] > 5 else other - one


class Divided(nn.Module):
    """Divides by a parameter, as ActNorm and learned step sizes do."""

    size: int

    @nn.compact
    def __call__(self, x):
        return x / self.param("scale", nn.initializers.ones, (self.size,))


@pytest.mark.parametrize(
    ("between", "operation"),
    [
        (lambda x: nn.LayerNorm(name="norm")(x), "`reduce_sum` at Net/norm"),
        (nn.softmax, "`reduce_max`"),
        (nn.sigmoid, "f(0) != 0"),
        (nn.softplus, "f(0) != 0"),
        (lambda x: nn.relu(x - 1.0) + 1.0, "f(0) != 0"),
        (lambda x: x + jnp.arange(6.0), "`add`"),
        (lambda x: x * x.sum(axis=-1, keepdims=True), "`reduce_sum`"),
        (lambda x: jnp.sort(x, axis=-1), "`sort`"),
        (lambda x: jnp.cumsum(x, axis=-1), "`cumsum`"),
        (lambda x: x.reshape(-1, 2, 3).transpose(0, 2, 1).reshape(-1, 6), "the model's own code"),
        (lambda x: x[:, jnp.array([1, 0, 2])], "`gather`"),
        (lambda x: jax.lax.map(lambda row: row + 0.0, x), "`scan`"),
        (lambda x: x / 6 * x.shape[-1], "`mul`"),
        # Where a filter is removed, 0 / 0.
        (lambda x: Divided(6)(x), "division by 0"),
        (lambda x: x / x.std(axis=0), "division by 0"),
        (lambda x: x * jax.lax.rsqrt(jnp.var(x, axis=0)), "division by 0"),
        # The same, but that what divides is 0 there is not known.
        (lambda x: x / nn.sigmoid(x).std(axis=0), "division by 0"),
        (lambda x: x * jnp.mean(jnp.cos(x) - jnp.cos(x).mean(axis=0), axis=0) ** -1, "by 0"),
        (lambda x: x * jnp.log(jnp.var(nn.softplus(x), axis=0)), "division by 0"),
        (lambda x: Normalised(6, relu=True)(x), "division by 0"),
        (lambda x: x / (jnp.ones((1, 2)) @ jnp.cos(jnp.stack([x, -x], 1)))[:, 0], "by 0"),
        (lambda x: Transposed(6)(jnp.stack([x / x.std(axis=0), x]).sum(axis=0)), "division by 0"),
        # The number of channels, in an array.
        (lambda x: x * jnp.full_like(x, x.shape[-1]), "`mul` with 2.0"),
        (lambda x: x * jnp.broadcast_to(1.0 / x.shape[-1], x.shape), "`mul` with 0.5"),
        (lambda x: x / jnp.ones_like(x).sum(axis=-1, keepdims=True), "takes 2 together"),
        (lambda x: x * (jnp.ones(x.shape[-1]) @ jnp.ones(x.shape[-1])), "takes 2 together"),
        (lambda x: x if x.shape[-1] > 5 else -x, "instead of"),
        (branches, "is of other arrays"),
        (
            lambda x: jnp.tanh(
                jnp.pad(x[:, None], ((0, 0), (1, 0), (0, 0)), constant_values=-jnp.inf)
            ).max(axis=1),
            "f(0) != 0",
        ),
        (lambda x: x ** x.shape[-1], "`integer_pow`"),
        (lambda x: x * jax.lax.fori_loop(0, x.shape[-1], lambda i, y: y + 1.0, 0.0), "`scan`"),
    ],
)
def test_what_is_not_followed_must_stay_and_is_named(between, operation):
    channels = trace(around(between), (5,))
    assert removable(channels) == ["free/kernel"]
    assert operation in reason(channels, "first/kernel")
    assert filter_channels(channels, "first/kernel").tolist() == [-1] * 6
    with pytest.raises(ValueError, match="'first/kernel' cannot be removed") as error:
        expand(channels, {"first/kernel": np.arange(6) < 3})
    assert operation in str(error.value)


@pytest.mark.parametrize(
    "between",
    [
        *(nn.relu, nn.gelu, nn.silu, nn.tanh, nn.leaky_relu, nn.hard_swish, nn.celu, nn.soft_sign),
        *(jnp.sin, jnp.square),
        lambda x: nn.PReLU()(x),
        lambda x: nn.Dropout(0.5, deterministic=True)(x),
        lambda x: x * nn.sigmoid(x) + 3 * x**3,
        lambda x: jnp.where(x > 0, x, -2 * x),
        lambda x: jnp.concatenate([x, -x], axis=-1),
        lambda x: jnp.flip(x[:, None], axis=-1)[:, 0],
        lambda x: jnp.clip(x, -1, 1),
        lambda x: x / (x.std(axis=0) + 1e-5),
        lambda x: Normalised(x.shape[-1])(x),
        lambda x: Watched()(x),
        lambda x: x * nn.softmax(x, axis=0) / jnp.sum(nn.softplus(x), axis=0),
        lambda x: jnp.concatenate([x, jnp.ones((len(x), 2))], axis=-1),
        lambda x: nn.max_pool(
            jnp.pad(x[:, None], ((0, 0), (1, 1), (0, 0)), constant_values=-jnp.inf), (2,)
        ).max(axis=1),
        lambda x: jnp.concatenate([nn.Dense(1)(x), x], axis=-1),
        lambda x: jnp.tile(x, (1, 2)),
        lambda x: jnp.repeat(x, 2, axis=-1),
        lambda x: jnp.stack([x, -x], axis=-1).max(axis=-1),
        lambda x: jnp.stack([x, -x], axis=1).reshape(len(x), -1),
        lambda x: jax.image.resize(x[:, None], (len(x), 3, x.shape[-1]), "nearest").max(axis=1),
    ],
)
def test_what_keeps_zero_lets_filters_go(between):
    channels = trace(around(between), (5,))
    assert removable(channels)[:2] == ["free/kernel", "first/kernel"]


def test_grouped_convolutions_stay_and_depthwise_ones_are_tied():
    def call(x):
        x = nn.Conv(4, (3, 3), name="in")(x)
        x = nn.Conv(4, (3, 3), feature_group_count=4, name="depthwise")(nn.relu(x))
        x = nn.Conv(8, (1, 1), name="point")(nn.relu(x))
        x = nn.Conv(8, (3, 3), feature_group_count=2, name="grouped")(nn.relu(x))
        return nn.Dense(3, name="out")(nn.relu(x).mean(axis=(1, 2)))

    channels = trace(net(call), (6, 6, 2))
    assert groups(channels) == [("in/kernel", "depthwise/kernel")]
    assert "2 groups" in reason(channels, "point/kernel")
    assert "2 groups" in reason(channels, "grouped/kernel")


def test_heads_go_and_the_stream_between_blocks_stays():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(8, name="embed")(x)
            x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
            x = x + nn.Dense(8, name="down")(nn.gelu(nn.Dense(16, name="up")(nn.LayerNorm()(x))))
            return nn.Dense(3, name="out")(x.mean(axis=1))

    channels = trace(Block(), (5, 4))
    attention = "MultiHeadDotProductAttention_0"
    heads = tuple(f"{attention}/{name}/kernel" for name in ("query", "key", "value"))
    assert groups(channels) == [heads, ("up/kernel",)]
    assert [(channels.layers[path].num_filters, channels.layers[path].axis) for path in heads] == [
        (2, -2)
    ] * 3
    assert channels.flops[heads[0]] == 2 * 5 * 8 * 8
    assert "LayerNorm_0" in reason(channels, f"{attention}/out/kernel")
    assert "LayerNorm_0" in reason(channels, "embed/kernel")
    assert "LayerNorm_0" in reason(channels, "down/kernel")


def test_normalisation_before_the_layer_and_concatenation():
    """A DenseNet: each layer reads all that came before."""

    class Dense(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3), name="conv_0")(x)
            for index in (1, 2):
                y = nn.relu(nn.BatchNorm(True, name=f"bn_{index}")(x))
                x = jnp.concatenate([x, nn.Conv(3, (3, 3), name=f"conv_{index}")(y)], axis=-1)
            return nn.Dense(2, name="out")(x.mean(axis=(1, 2)))

    channels = trace(Dense(), (4, 4, 2))
    assert removable(channels) == ["conv_0/kernel", "conv_1/kernel", "conv_2/kernel"]
    assert channels.labels["params/bn_2/scale"][0].tolist() == list(range(7))
    assert channels.labels["params/out/kernel"][0].tolist() == list(range(10))
    assert channels.layers["conv_0/kernel"].scale == "bn_1/scale"
    assert channels.layers["conv_1/kernel"].scale is None  # normalised with others, not by itself


def test_flattening_repeats_channels():
    def call(x):
        x = nn.Conv(3, (2, 2), padding="VALID", name="conv")(x)
        return nn.Dense(2, name="out")(x.reshape(len(x), -1))

    channels = trace(net(call), (3, 4, 1))
    assert channels.labels["params/out/kernel"][0].tolist() == [0, 1, 2] * 6
    assert channels.flops == {"conv/kernel": 2 * 4 * 3 * 6, "out/kernel": 2 * 18 * 2}


def test_layers_across_channels_cost_less_with_fewer_of_them():
    """As an MLP-Mixer mixes tokens: once for each of 4 channels, of which 3 are left."""

    def call(x):
        x = nn.Dense(4, name="embed")(x)
        y = nn.relu(nn.Dense(6, use_bias=False, name="tokens")(x.swapaxes(1, 2)))
        x += nn.Dense(5, use_bias=False, name="back")(y).swapaxes(1, 2)
        return nn.Dense(2, name="out")(x.mean(axis=1))

    channels = trace(net(call), (5, 3))
    kept = cost(channels, {"embed/kernel": np.arange(4) > 0, "tokens/kernel": np.arange(6) > 3})
    assert cost(channels).flops == 2 * (5 * 3 * 4 + 4 * 5 * 6 + 4 * 6 * 5 + 4 * 2)
    assert kept.flops == 2 * (5 * 3 * 3 + 3 * 5 * 2 + 3 * 2 * 5 + 3 * 2)


def test_code_that_compares_channel_numbers_is_found_out():
    """The reason names what happens; nothing is ever wrong in silence."""

    class Block(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            y = nn.Dense(self.width, name="own")(nn.relu(x))
            return y + (nn.Dense(self.width, name="shortcut")(x) if x.shape[-1] != 4 else x)

    model = nn.Sequential([nn.Dense(4), Block(4), nn.relu, nn.Dense(5), nn.relu, nn.Dense(2)])
    channels = trace(model, (3,))
    assert removable(channels) == ["layers_3/kernel"]
    assert "shortcut" in reason(channels, "layers_0/kernel")


@pytest.mark.parametrize("part", [slice(2, 5), slice(6, None), slice(None, 5)])
def test_slices_by_number_are_found_out(part):
    def call(x):
        x = nn.Dense(4, name="free")(x)
        return nn.Dense(2)(nn.Dense(16, name="cut")(x)[:, part])

    channels = trace(net(call), (3,))
    assert removable(channels) == ["free/kernel"]
    assert "`slice`" in reason(channels, "cut/kernel") or "shape" in reason(channels, "cut/kernel")


def test_a_table_shows_what_is_tied_and_what_stays():
    lines = str(stream()).splitlines()
    assert [line.split()[0] for line in lines] == ["layer", *stream().layers]
    assert lines[1].split() == ["conv/kernel", "4", "block_0/conv2/kernel"]
    assert "block_1/conv2/kernel and 1 more" in str(stream())
    assert lines[-1].split(maxsplit=2) == ["fc/kernel", "5", "they are the model's outputs"]


def test_widths_may_be_numpy_integers():
    channels = trace(nn.Sequential([nn.Dense(np.int64(4)), nn.relu, nn.Dense(2)]), (3,))
    assert removable(channels) == ["layers_0/kernel"]


def test_a_single_filter_stays():
    channels = trace(net(lambda x: nn.Dense(2)(nn.Dense(3)(nn.Dense(1)(x)))), (4,))
    assert reason(channels, "Dense_2/kernel") == "it has only one filter"
    assert removable(channels) == ["Dense_1/kernel"]


# -- Keep ----------------------------------------------------------------------------------------


def test_expand_follows_ties():
    keep = np.array([True, False, True, True])
    full = expand(stream(), {"block_0/conv2/kernel": keep})
    assert list(full) == list(stream().layers)
    np.testing.assert_array_equal(full["conv/kernel"], keep)
    others = [path for path in full if path not in ("conv/kernel", "block_0/conv2/kernel")]
    assert all(full[path].all() for path in others)
    assert all(kept.all() for kept in expand(stream(), {}).values())


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        ({"conv": np.ones(4, bool)}, ValueError, "keep: 'conv' is no kernel"),
        ({"conv/kernel": np.ones(5, bool)}, ValueError, r"shape \(5,\), expected \(4,\)"),
        ({"conv/kernel": np.ones(4)}, TypeError, "float64, expected a boolean"),
        ({"conv/kernel": [True] * 4}, TypeError, "list, expected a boolean"),
        ({"conv/kernel": np.zeros(4, bool)}, ValueError, "'conv/kernel' has no filter left"),
        ({"fc/kernel": np.arange(5) < 4}, ValueError, "'fc/kernel' cannot be removed: they are"),
        (
            {"conv/kernel": np.arange(4) < 3, "block_0/conv2/kernel": np.ones(4, bool)},
            ValueError,
            "'block_0/conv2/kernel' keeps filter 3, but 'conv/kernel', which is tied",
        ),
    ],
)
def test_wrong_keeps(keep, error, message):
    for use in (expand, cost):
        with pytest.raises(error, match=message):
            use(stream(), keep)


def test_a_traced_keep_is_refused():
    channels = trace(models.mlp((4,)), (3,))
    with pytest.raises(TypeError, match="'hidden_0/kernel' is traced by jit"):
        jax.jit(lambda keep: expand(channels, {"hidden_0/kernel": keep}))(np.ones(4, bool))


# -- Wrong models --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape", "options", "error", "message"),
    [
        (lambda x: x, (3,), {}, TypeError, "`model` is a function"),
        ("mlp", (3,), {}, TypeError, "model: got str"),
        (models.mlp((4,)).bind({}), (3,), {}, TypeError, "bound module"),
        (models.mlp((4,)), 3, {}, TypeError, "input_shape: got 3"),
        (models.resnet20(width=2), (3,), {}, ValueError, "cannot be initialised from inputs"),
        (models.resnet20(width=2), (8, 8, 3), {"train": True}, ValueError, "train=False"),
        (nn.Dense(4), (3,), {}, ValueError, "kernel: they are the model's outputs"),
        (net(lambda x: x + 1), (3,), {}, ValueError, "no convolution or dense layer"),
    ],
)
def test_wrong_models(model, shape, options, error, message):
    with pytest.raises(error, match=message):
        trace(model, shape, **options)


def test_other_state_is_refused():
    class Counter(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.variable("counts", "calls", lambda: jnp.zeros(()))
            return nn.Dense(2)(nn.Dense(3)(x))

    with pytest.raises(ValueError, match="collection.s. counts"):
        trace(Counter(), (3,))
