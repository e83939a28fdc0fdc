"""Shrinking: after zeroing, the smaller network is the same function, whatever goes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntksap_jax as nts
from ntksap_jax import masks, models
from ntksap_jax.structured import cost, expand, groups, load, save, shrink, trace, zero_out
from ntksap_jax.structured.channels import filter_channels

# -- Models of users -----------------------------------------------------------------------------


class Flattened(nn.Module):
    """Pools, a flatten of H, W and C, dropout, biases before normalisation."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3))(x)
        x = nn.gelu(nn.BatchNorm(not train)(x))
        x = nn.avg_pool(nn.max_pool(x, (2, 2), (1, 1), "SAME"), (2, 2), (2, 2))
        x = nn.Dropout(0.3, deterministic=not train)(x)
        x = nn.PReLU()(nn.Dense(7)(x.reshape(len(x), -1)))
        return nn.Dense(3)(x)


class Grown(nn.Module):
    """Concatenation, normalisation first; statistics without scale; setup in place of compact."""

    def setup(self):
        self.stem = nn.Conv(5, (3, 3), use_bias=False)
        self.norms = [nn.BatchNorm(use_scale=index == 0, momentum=0.5) for index in range(2)]
        self.convs = [nn.Conv(4, (1, 1)) for _ in range(2)]
        self.head = nn.Dense(3)

    def __call__(self, x, train=False):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(nn.leaky_relu(norm(x, use_running_average=not train)))
            x = jnp.concatenate([x, y], axis=-1)
        return self.head(x.max(axis=(1, 2)))


class Separable(nn.Module):
    """Depthwise convolutions, a gated unit whose halves are tied, upsampling, a skip by sum."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(6, (3, 3), name="stem")(x))
        y = nn.Conv(6, (3, 3), feature_group_count=6, name="depthwise")(x)
        y = nn.relu(nn.BatchNorm(not train)(y))
        x = x + nn.Conv(6, (1, 1), name="point")(y)
        a, b = jnp.split(nn.Conv(8, (1, 1), name="gated")(nn.silu(x)), 2, axis=-1)
        x = nn.relu(nn.ConvTranspose(4, (2, 2), strides=(2, 2), name="up")(a * nn.sigmoid(b)))
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


class Bottleneck(nn.Module):
    """What a block does to its input is said by a field, not by numbers of channels."""

    inside: int
    outside: int
    project: bool

    @nn.compact
    def __call__(self, x, train):
        def conv(x, features, size, name):
            x = nn.Conv(features, (size, size), use_bias=False, name=f"conv_{name}")(x)
            return nn.BatchNorm(not train, name=f"bn_{name}")(x)

        y = nn.relu(conv(x, self.inside, 1, "reduce"))
        y = nn.relu(conv(y, self.inside, 3, "inside"))
        y = conv(y, self.outside, 1, "expand")
        return nn.relu(y + (conv(x, self.outside, 1, "shortcut") if self.project else x))


class Bottlenecks(nn.Module):
    """A stream of bottlenecks behind one convolution."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(4, (3, 3), name="stem")(x))
        x = Bottleneck(3, 8, True, name="block_0")(x, train)
        x = Bottleneck(3, 8, False, name="block_1")(x, train)
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


class Tokens(nn.Module):
    """A mixer: dense layers over tokens and over features, on one stream."""

    bias: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(6, name="embed")(x)
        y = nn.Dense(4, use_bias=self.bias, name="tokens_up")(jnp.swapaxes(x, 1, 2))
        y = nn.Dense(5, use_bias=self.bias, name="tokens_down")(nn.gelu(y))
        x = x + jnp.swapaxes(y, 1, 2)
        x = x + nn.Dense(6, name="down")(nn.relu(nn.Dense(9, name="up")(x)))
        return nn.Dense(3, name="head")(x.mean(axis=1))


FAMILIES = {
    "mlp": (models.mlp((6, 5), num_classes=3), (2, 2, 1)),
    "vgg16": (models.vgg16_bn(width=4, num_classes=3), (16, 16, 3)),
    "option a": (models.ResNet((1, 1), 4, 3, shortcut="pad"), (6, 6, 3)),
    "projections": (models.ResNet((1, 1), 4, 3), (6, 6, 3)),
    "basic": (models.ImageNetResNet((1, 1), False, 4, 3), (8, 8, 3)),
    "bottleneck": (models.ImageNetResNet((1,), True, 2, 3), (8, 8, 3)),
    "flattened": (Flattened(), (6, 6, 2)),
    "grown": (Grown(), (6, 6, 2)),
    "separable": (Separable(), (6, 6, 2)),
    "bottlenecks": (Bottlenecks(), (6, 6, 2)),
    "tokens": (Tokens(), (5, 4)),
}
SLOW = ("vgg16", "option a", "basic", "bottlenecks")
"""To compile; what they consist of is in the others too."""
CHANNELS = {}


def channels_of(name):
    if name not in CHANNELS:
        CHANNELS[name] = trace(*FAMILIES[name], train=False)
    return CHANNELS[name]


def random_variables(model, shape, seed=0):
    """Weights of a fair size, and normalisation with nothing at 0: statistics, scales, shifts."""
    generator = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))

    def draw(path, leaf):
        if leaf.ndim > 1:
            fan = np.prod(leaf.shape[:-1])
            return np.asarray(generator.normal(size=leaf.shape) * np.sqrt(2 / fan), leaf.dtype)
        # (A variance of 1/2, so that the signal does not fade in deep networks.)
        sign = 0.5 if path[-1].key == "var" else generator.choice([-1, 1], leaf.shape)
        return np.asarray(sign * generator.uniform(0.5, 1.5, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_keep(channels, seed):
    """Some filters of the first layer of each group, at least one; the tied ones follow."""
    generator = np.random.default_rng(seed)
    keep = {}
    for first, *_ in groups(channels):
        numbers = filter_channels(channels, first)
        alive = generator.random(channels.num_channels) < generator.uniform(0.3, 0.9)
        alive[generator.choice(numbers)] = True
        keep[first] = alive[numbers]
    return keep


def close(got, want):
    scale = float(jnp.max(jnp.abs(want)))
    np.testing.assert_allclose(got, want, atol=1e-5 * max(scale, 1.0))


def outputs(model, variables, x):
    return jax.jit(model.apply)(variables, x)


def shrink_and_compare(model, variables, channels, keep, x):
    """Returns the smaller network, after its comparison with the one in which filters are zero."""
    small, fewer = shrink(model, variables, channels, keep)

    @jax.jit
    def both(variables, fewer, x):
        return model.apply(zero_out(variables, channels, keep), x), small.apply(fewer, x)

    want, got = both(variables, fewer, x)
    assert np.max(np.ptp(want, axis=0)) > 1e-3  # the inputs do reach the outputs
    close(got, want)
    return small, fewer


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def init(model, shape):
    return jax.jit(model.init)(jax.random.key(0), np.ones((1, *shape), np.float32))


# -- The function is preserved -------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.long] if n in SLOW else []) for n in FAMILIES],
)
def test_a_shrunk_network_is_the_zeroed_one(name):
    model, shape = FAMILIES[name]
    channels, variables = channels_of(name), random_variables(model, shape)
    # With seed 0, so much goes of the bottleneck that its outputs are constant.
    keep = random_keep(channels, 3 if name == "bottleneck" else 0)
    _, fewer = shrink_and_compare(model, variables, channels, keep, normal(1, 3, *shape))
    full = expand(channels, keep)
    for path, leaf in masks.leaf_paths(fewer["params"]).items():
        if path in full:
            assert leaf.shape[-1] == full[path].sum()
    counted = sum(leaf.size for leaf in jax.tree.leaves(fewer["params"]))
    assert cost(channels, keep).params == counted


def test_families_lose_what_they_can():
    """The streams too, where the model's code lets them; the first is not the only group."""
    tied = {
        name: [group for group in groups(channels_of(name)) if len(group) > 1]
        for name in ("projections", "basic", "bottlenecks", "separable", "tokens", "option a")
    }
    assert {name: len(found) for name, found in tied.items()} == {
        "projections": 2,
        "basic": 2,
        "bottlenecks": 1,
        "separable": 1,
        "tokens": 1,
        "option a": 0,
    }
    assert tied["bottlenecks"][0] == (
        "block_0/conv_expand/kernel",
        "block_0/conv_shortcut/kernel",
        "block_1/conv_expand/kernel",
    )
    assert tied["separable"][0] == ("stem/kernel", "depthwise/kernel", "point/kernel")
    assert [path for path, layer in channels_of("tokens").layers.items() if layer.removable] == [
        "embed/kernel",
        "tokens_up/kernel",
        "up/kernel",
        "down/kernel",
    ]
    gate = filter_channels(channels_of("separable"), "gated/kernel")
    np.testing.assert_array_equal(gate[:4], gate[4:])


def test_biases_over_tokens_keep_the_stream():
    """A feature that is zero for all tokens is not zero after a bias is added to each token."""
    channels = trace(Tokens(bias=True), (5, 4))
    assert [path for path, layer in channels.layers.items() if layer.removable] == [
        "tokens_up/kernel",
        "up/kernel",
    ]
    assert "is not 0" in channels.reasons["embed/kernel"]


def test_a_single_filter_can_go():
    """One at a time, with what is tied to it: a depthwise convolution, the other half of a gate."""
    model, shape = FAMILIES["separable"]
    channels, variables = channels_of("separable"), random_variables(model, shape)
    for path in ("stem/kernel", "gated/kernel"):
        numbers = filter_channels(channels, path)
        keep = {path: numbers != numbers[-1]}
        shrink_and_compare(model, variables, channels, keep, normal(1, 2, *shape))


@pytest.mark.parametrize("name", ["projections", "grown"])
def test_training_mode_is_preserved_too(name):
    """Batch statistics of what is zero are zero: outputs and new statistics agree."""
    model, shape = FAMILIES[name]
    channels, variables = channels_of(name), random_variables(model, shape)
    x = normal(1, 4, *shape)
    keep = random_keep(channels, 5)
    zeroed = jax.jit(lambda variables: zero_out(variables, channels, keep))(variables)
    small, fewer = shrink(model, zeroed, channels, keep)

    @jax.jit
    def train(zeroed, fewer):
        options = {"train": True, "mutable": ["batch_stats"]}
        return model.apply(zeroed, x, **options), small.apply(fewer, x, **options)

    (want, whole), (got, updated) = train(zeroed, fewer)
    scale = float(jnp.max(jnp.abs(want)))
    np.testing.assert_allclose(got, want, atol=1e-4 * max(scale, 1.0))
    _, expected = shrink(model, {**zeroed, **whole}, channels, keep)
    for path, leaf in masks.leaf_paths(updated).items():
        np.testing.assert_allclose(leaf, masks.leaf_paths(expected)[path], rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_zeroing_is_what_it_takes():
    """Filters that are not zeroed did something: without them the function is another."""
    model, shape = FAMILIES["vgg16"]
    channels, variables = channels_of("vgg16"), random_variables(model, shape)
    keep = random_keep(channels, 0)
    x = jax.random.normal(jax.random.key(1), (3, *shape))
    small, fewer = shrink(model, variables, channels, keep)
    want = outputs(model, variables, x)
    assert np.max(np.abs(outputs(small, fewer, x) - want)) > 0.01 * np.max(np.abs(want))


def test_zeroing_touches_what_belongs_to_the_filters_alone():
    model, shape = FAMILIES["projections"]
    channels, variables = channels_of("projections"), random_variables(model, shape)
    keep = {"block_0/conv1/kernel": np.array([True, False, True, True])}
    zeroed = masks.leaf_paths(zero_out(variables, channels, keep))
    changed = {
        path
        for path, leaf in masks.leaf_paths(variables).items()
        if not np.array_equal(leaf, zeroed[path])
    }
    block = "params/block_0"
    assert changed == {f"{block}/conv1/kernel", f"{block}/bn1/scale", f"{block}/bn1/bias"}
    for path in changed:
        kept = keep["block_0/conv1/kernel"]
        assert not np.any(zeroed[path][..., ~kept])
        before = masks.leaf_paths(variables)[path]
        np.testing.assert_array_equal(zeroed[path][..., kept], before[..., kept])


def test_zeroing_a_normalisation_without_scale_zeroes_its_mean():
    model, shape = FAMILIES["grown"]
    channels, variables = channels_of("grown"), random_variables(model, shape)
    keep = {"stem/kernel": np.arange(5) != 2}
    zeroed = zero_out(variables, channels, keep)
    assert (np.asarray(zeroed["batch_stats"]["norms_1"]["mean"]) == 0).tolist()[:5] == [
        *(False, False, True, False, False)
    ]
    assert np.all(zeroed["batch_stats"]["norms_0"]["mean"] != 0)
    assert np.all(zeroed["batch_stats"]["norms_1"]["var"] != 0)


def test_zeroing_works_under_jit_and_the_given_variables_stay():
    model, shape = FAMILIES["mlp"]
    channels, variables = channels_of("mlp"), random_variables(model, shape)
    before = jax.tree.map(np.array, variables)
    keep = {"hidden_0/kernel": np.arange(6) < 2}
    traced = jax.jit(lambda variables: zero_out(variables, channels, keep))(variables)
    jax.tree.map(np.testing.assert_array_equal, traced, zero_out(variables, channels, keep))
    jax.tree.map(np.testing.assert_array_equal, before, variables)


def test_keeping_all_changes_nothing():
    model, shape = FAMILIES["grown"]
    channels, variables = channels_of("grown"), random_variables(model, shape)
    small, same = shrink(model, variables, channels, {})
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    jax.tree.map(np.testing.assert_array_equal, init(small, shape), init(model, shape))


# -- The shrunk network is a network -------------------------------------------------------------


def test_trains_is_saved_and_shrinks_again(tmp_path):
    model, shape = FAMILIES["separable"]
    channels, variables = channels_of("separable"), random_variables(model, shape)
    x = normal(1, 4, *shape)
    keep = random_keep(channels, 7)
    small, fewer = shrink(model, variables, channels, keep)

    def loss(params):
        logits, updated = small.apply(
            {**fewer, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        labels = jnp.arange(4) % 3
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

    tx = optax.sgd(0.01, momentum=0.9)

    @jax.jit
    def step(params):
        (before, updated), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, _ = tx.update(gradient, tx.init(params))
        return before, updated, optax.apply_updates(params, updates)

    before, updated, params = step(fewer["params"])
    trained = {**fewer, **updated, "params": params}
    assert float(step(params)[0]) < float(before)

    save(tmp_path / "small.safetensors", small, trained)
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.safetensors"]
    read, stored = load(tmp_path / "small.safetensors", model)
    assert read == small and hash(read) == hash(small)
    jax.tree.map(np.testing.assert_array_equal, stored, trained)
    found = trace(read, shape, train=False)
    assert list(found.layers) == list(channels.layers)
    assert cost(found) == cost(channels, keep)
    smaller, _ = shrink_and_compare(read, stored, found, random_keep(found, 8), x)
    assert smaller.original == small.original  # one wrapper, however often


def test_is_a_network_of_the_library():
    """Masks, scores' networks and fresh weights work as on any linen module."""
    model, shape = FAMILIES["grown"]
    channels, variables = channels_of("grown"), random_variables(model, shape)
    keep = random_keep(channels, 3)
    small, fewer = shrink(model, variables, channels, keep)
    network = nts.linen(small, shape, train=False, batch_stats=fewer["batch_stats"])
    fresh = jax.eval_shape(network.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, fewer["params"])
    assert masks.num_prunable(masks.create(fresh)) == sum(
        leaf.size for leaf in jax.tree.leaves(fresh) if leaf.ndim > 1
    )
    x = normal(1, 4, *shape)
    close(jax.jit(network.apply_running)(fewer["params"], x), outputs(small, fewer, x))
    assert jax.eval_shape(network.apply, fresh, x).shape == (4, 3)


def test_fresh_weights_have_the_scale_of_the_smaller_layers():
    model = models.mlp((400,), num_classes=200)
    channels = trace(model, (50,))
    small, _ = shrink(
        model,
        init(model, (50,)),
        channels,
        {"hidden_0/kernel": np.arange(400) < 100},
    )
    kernel = init(small, (50,))["params"]["fc"]["kernel"]
    assert kernel.shape == (100, 200)
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / 100), rtol=0.02)


def test_may_stand_inside_of_another_module():
    """The paths are the inner module's own, wherever it stands."""
    model, shape = FAMILIES["mlp"]
    channels, variables = channels_of("mlp"), random_variables(model, shape)
    keep = {"hidden_0/kernel": np.arange(6) < 2}
    small, fewer = shrink(model, variables, channels, keep)

    class Outer(nn.Module):
        inner: nn.Module

        @nn.compact
        def __call__(self, x):
            return 2 * self.inner(x)

    x = jax.random.normal(jax.random.key(1), (2, *shape))
    got = outputs(Outer(small), {"params": {"inner": fewer["params"]}}, x)
    np.testing.assert_allclose(got, 2 * outputs(small, fewer, x), rtol=1e-6)


class Autoencoder(nn.Module):
    """Two methods, and a layer whose name holds a slash."""

    def setup(self):
        self.inside = nn.Dense(6, name="encoder/dense")
        self.outside = nn.Dense(4)

    def encode(self, x):
        return nn.relu(self.inside(x))

    def __call__(self, x):
        return self.outside(self.encode(x))


def shrunk_autoencoder():
    model = Autoencoder()
    channels, variables = trace(model, (4,)), random_variables(model, (4,))
    keep = {"encoder/dense/kernel": np.arange(6) < 3}
    zeroed = jax.jit(lambda variables: zero_out(variables, channels, keep))(variables)
    return model, zeroed, *shrink(model, zeroed, channels, keep)


def test_other_methods_and_fields_are_the_original_s():
    model, zeroed, small, fewer = shrunk_autoencoder()
    x = jax.random.normal(jax.random.key(1), (2, 4))
    want = model.apply(zeroed, x, method="encode")[:, :3]
    for method in ("encode", Autoencoder.encode, model.encode, lambda m, x: nn.relu(m.inside(x))):
        close(small.apply(fewer, x, method=method), want)
    close(small.bind(fewer).encode(x), want)
    assert list(small.init(jax.random.key(0), x, method="encode")["params"]) == ["encoder/dense"]
    with pytest.raises(AttributeError, match="decode"):
        small.apply(fewer, x, method="decode")


def test_a_shrunk_backbone_inside_a_new_model_shrinks_on(tmp_path):
    _, _, small, fewer = shrunk_autoencoder()

    class Classifier(nn.Module):
        backbone: nn.Module

        @nn.compact
        def __call__(self, x):
            x = self.backbone.encode(x) + self.backbone.encode(-x)
            return nn.Dense(2, name="head")(nn.relu(nn.Dense(5, name="neck")(x)))

    model = Classifier(small)
    fresh = init(model, (4,))
    variables = {"params": {**fresh["params"], "backbone": fewer["params"]}}
    del variables["params"]["backbone"]["outside"]
    channels = trace(model, (4,))
    keep = {"backbone/encoder/dense/kernel": np.arange(3) != 1, "neck/kernel": np.arange(5) < 2}
    smaller, fewest = shrink_and_compare(model, variables, channels, keep, normal(1, 2, 4))
    assert fewest["params"]["backbone"]["encoder/dense"]["kernel"].shape == (4, 2)
    save(tmp_path / "small.safetensors", smaller, fewest)
    read, stored = load(tmp_path / "small.safetensors", model)
    assert read == smaller
    jax.tree.map(np.testing.assert_array_equal, stored, fewest)


def test_variables_of_another_precision_shrink_too():
    """The constants of the model's code are then written otherwise, and mean the same."""
    model, shape = Flattened(), (6, 6, 2)
    channels, variables = channels_of("flattened"), random_variables(model, shape)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    _, fewer = shrink(model, half, channels, random_keep(channels, 0))
    assert {leaf.dtype for leaf in jax.tree.leaves(fewer)} == {jnp.dtype(jnp.bfloat16)}


# -- Errors --------------------------------------------------------------------------------------


def test_variables_of_another_model_are_refused():
    model, shape = FAMILIES["mlp"]
    channels = channels_of("mlp")
    other = random_variables(models.mlp((6, 4), num_classes=3), shape)
    for use in (zero_out, lambda *given: shrink(model, *given)):
        with pytest.raises(ValueError, match=r"'params/fc/kernel' has shape \(4, 3\), .* \(5, 3\)"):
            use(other, channels, {})
        with pytest.raises(ValueError, match="variables: leaf 'params/fc/bias' has shape None"):
            use(other["params"], channels, {})


def test_files_that_cannot_be_written_or_read_say_so(tmp_path):
    model = nn.Dense(2)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*/missing\. Make it first"):
        save(tmp_path / "missing" / "small.safetensors", model, init(model, (3,)))
    save(tmp_path / "wide.safetensors", model, {"params": {"kernel": np.ones((3, 2))}})
    with pytest.raises(ValueError, match="'params/kernel' of .* is float64.*jax_enable_x64"):
        load(tmp_path / "wide.safetensors", model)


def test_numbers_that_send_the_model_s_code_another_way_are_refused():
    """Where two numbers happen to be equal, its own code would leave the projection out."""

    class Projects(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(4, name="first")(x)
            y = nn.Dense(12, name="second")(nn.relu(x))
            if x.shape != y.shape:
                x = nn.Dense(12, name="shortcut")(x)
            return nn.Dense(2, name="head")(nn.relu(x + y))

    model = Projects()
    channels = trace(model, (3,))
    assert groups(channels) == [("first/kernel",), ("second/kernel", "shortcut/kernel")]
    variables = init(model, (3,))
    shrink(model, variables, channels, {"second/kernel": np.arange(12) < 5})
    with pytest.raises(ValueError, match="keep: the model's own code does not follow.*`add`"):
        shrink(model, variables, channels, {"second/kernel": np.arange(12) < 4})


def test_places_are_checked_not_only_sizes():
    """A slice that would be of the right size, but of other channels."""

    class Cut(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(32, name="first")(x)
            return nn.Dense(2, name="head")(nn.relu(x)[:, 5 : x.shape[-1] - 5])

    model = Cut()
    with pytest.raises(ValueError, match="no filter of any layer can be removed"):
        trace(model, (3,))
