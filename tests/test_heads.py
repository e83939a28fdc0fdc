"""Attention heads and groups of channels that go together: shrunk is zeroed, however written."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ntksap_jax import exchange, masks, structured

WIDTH, TOKENS = 8, 5


class Split(nn.Module):
    """Heads by a reshape; their number is a field, as is that of all features."""

    features_in_heads: int
    num_heads: int
    masked: bool = False

    @nn.compact
    def __call__(self, x):
        def heads(name):
            y = nn.Dense(self.features_in_heads, name=name)(x)
            return y.reshape(*y.shape[:-1], self.num_heads, -1)

        mask = nn.make_causal_mask(x[..., 0]) if self.masked else None
        y = nn.dot_product_attention(heads("q"), heads("k"), heads("v"), mask=mask)
        return nn.Dense(WIDTH, name="out")(y.reshape(*x.shape[:-1], self.features_in_heads))


class Transposed(nn.Module):
    """A dense layer whose kernel is (outputs, inputs), as in GPT-2."""

    features: int

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.normal()
        kernel = self.param("kernel", init, (self.features, x.shape[-1]))
        return x @ kernel.T + self.param("bias", init, (self.features,))


class Fused(nn.Module):
    """Query, key and value in one layer; numbers are told in a configuration, and kept in setup."""

    config: object

    def setup(self):
        self.heads, self.width = self.config.num_heads, self.config.width
        self.all = Transposed(3 * self.width)
        self.out = Transposed(WIDTH)

    def _split(self, x):
        return x.reshape(*x.shape[:-1], self.heads, self.width // self.heads)

    def __call__(self, x):
        y = nn.dot_product_attention(*map(self._split, jnp.split(self.all(x), 3, axis=-1)))
        return self.out(y.reshape(*x.shape[:-1], self.width))


class Config:
    num_heads, width = 3, 12

    def __init__(self):
        self.num_heads, self.width = 3, 12


class GroupNormed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.GroupNorm(3, name="norm")(nn.Dense(12, name="in")(x))
        return nn.Dense(WIDTH, name="out")(nn.relu(x))


def multi_head():
    return nn.MultiHeadDotProductAttention(3, qkv_features=12, out_features=WIDTH, name="attention")


WAYS = {
    "multi_head": (multi_head, 3),
    "normalised": (
        lambda: nn.MultiHeadDotProductAttention(
            3, qkv_features=12, normalize_qk=True, out_features=WIDTH
        ),
        3,
    ),
    "split": (lambda: Split(12, 3), 12),
    "masked": (lambda: Split(12, 3, masked=True), 12),
    "fused": (lambda: Fused(Config()), 36),
    "groups": (GroupNormed, 12),
}


class Block(nn.Module):
    """A transformer's block around one of these, and a readout."""

    way: str

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(WIDTH, name="embed")(x)
        x = x + WAYS[self.way][0]()(nn.LayerNorm()(x))
        gate, value = jnp.split(nn.Dense(12, name="gated")(nn.LayerNorm()(x)), 2, axis=-1)
        x = x + nn.Dense(WIDTH, name="down")(nn.silu(gate) * value)
        return nn.Dense(3, name="head")(x.mean(-2))


def made(way):
    model = Block(way)
    x = jax.random.normal(jax.random.key(0), (4, TOKENS, 6))
    variables = model.init(jax.random.key(1), x)
    noisy = jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
        variables,
    )
    return model, noisy, x


def first_third(channels, path):
    """Keeps all but the first of three heads or groups of a layer."""
    numbers = channels.labels[f"params/{path}"][channels.layers[path].axis]
    return numbers != numbers[0]


@pytest.mark.parametrize("way", WAYS)
def test_a_head_goes_and_the_rest_computes_the_same(way, tmp_path):
    model, variables, x = made(way)
    channels = structured.trace(model, x.shape[1:])
    heads, gated = structured.groups(channels)
    layer = channels.layers[heads[0]]
    assert layer.num_filters == WAYS[way][1] and gated == ("gated/kernel",)
    assert len({*channels.labels[f"params/{heads[0]}"][layer.axis].tolist()}) == 3
    keep = {heads[0]: first_third(channels, heads[0])}
    zeroed = structured.zero_out(variables, channels, keep)
    small, fewer = structured.shrink(model, zeroed, channels, keep)
    expected = model.apply(zeroed, x)
    assert np.abs(expected - model.apply(variables, x)).max() > 1e-3
    np.testing.assert_allclose(small.apply(fewer, x), expected, atol=1e-5)
    assert structured.cost(channels, keep).params == sum(
        leaf.size for leaf in jax.tree.leaves(fewer["params"])
    )
    if way in ("split", "fused", "multi_head"):  # read again, and once more smaller
        structured.save(tmp_path / "small.safetensors", small, fewer)
        read, again = structured.load(tmp_path / "small.safetensors", model)
        np.testing.assert_array_equal(read.apply(again, x), small.apply(fewer, x))
        channels = structured.trace(small, x.shape[1:])
        keep = {heads[0]: first_third(channels, heads[0])}
        zeroed = structured.zero_out(fewer, channels, keep)
        smaller, fewest = structured.shrink(small, zeroed, channels, keep)
        np.testing.assert_allclose(smaller.apply(fewest, x), small.apply(zeroed, x), atol=1e-5)


@pytest.mark.parametrize("way", ["multi_head", "fused"])
def test_scores_masks_and_tpp_go_along_the_axis_of_heads(way):
    model, variables, x = made(way)
    params = variables["params"]
    channels = structured.trace(model, x.shape[1:])
    path = structured.groups(channels)[0][0]
    layer = channels.layers[path]
    kernel = masks.leaf_paths(params)[path]
    own = np.abs(np.moveaxis(kernel, layer.axis, -1)).reshape(-1, layer.num_filters).mean(0)
    numbers = channels.labels[f"params/{path}"][layer.axis]
    tied = structured.groups(channels)[0]
    if len(tied) == 1:  # otherwise those of query, key and value are added up
        expected = np.array([own[numbers == number].sum() for number in numbers])
        np.testing.assert_allclose(structured.l1(params, channels)[path], expected, rtol=1e-5)
    keep = structured.expand(channels, {path: first_third(channels, path)})
    keep = {name: kept for name, kept in keep.items() if not kept.all()}
    mask = masks.leaf_paths(structured.to_mask(params, channels, keep))
    zeroed = masks.leaf_paths(structured.zero_out(variables, channels, keep))
    for name in keep:
        np.testing.assert_array_equal(~mask[name], zeroed[f"params/{name}"] == 0)
    settings = structured.tpp.Settings(
        update_interval=1, increment=1.0, stabilise_steps=20, zero_out_interval=1
    )
    optimizer = structured.tpp.regularise(optax.sgd(0.0), channels, keep, settings)
    state = optimizer.init(params)
    for _ in range(structured.tpp.num_steps(settings)):
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
    ended = masks.leaf_paths(params)
    for name in keep:
        np.testing.assert_array_equal(ended[name], zeroed[f"params/{name}"])
        bias = channels.layers[name].bias
        np.testing.assert_array_equal(ended[bias] == 0, zeroed[f"params/{bias}"] == 0)


class SplitNnx(nnx.Module):
    def __init__(self, *, rngs):
        self.num_heads, self.head_dim = 3, 4
        self.q, self.k, self.v = (nnx.Linear(WIDTH, 12, rngs=rngs) for _ in range(3))
        self.out = nnx.Linear(12, WIDTH, rngs=rngs)

    def __call__(self, x):
        q, k, v = (
            layer(x).reshape(*x.shape[:-1], self.num_heads, self.head_dim)
            for layer in (self.q, self.k, self.v)
        )
        y = nnx.dot_product_attention(q, k, v)
        return self.out(y.reshape(*x.shape[:-1], self.num_heads * self.head_dim))


class NormNnx(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(WIDTH, 12, rngs=rngs)
        self.norm = nnx.GroupNorm(12, num_groups=3, rngs=rngs)
        self.out = nnx.Linear(12, WIDTH, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.linear(x))))


def multi_head_nnx(rngs):
    return nnx.MultiHeadAttention(3, WIDTH, 12, WIDTH, decode=False, rngs=rngs)


@pytest.mark.parametrize("part", [multi_head_nnx, SplitNnx, NormNnx])
def test_heads_of_nnx_models_go(part):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(part(rngs=rngs), nnx.gelu, nnx.Linear(WIDTH, 2, rngs=rngs))
    variables = {"params": exchange.nnx_params(model)}
    x = jax.random.normal(jax.random.key(0), (4, TOKENS, WIDTH))
    channels = structured.trace(model, x.shape[1:])
    path = structured.groups(channels)[0][0]
    keep = {path: first_third(channels, path)}
    zeroed = structured.zero_out(variables, channels, keep)
    small, fewer = structured.shrink(model, zeroed, channels, keep)
    nnx.update(model, zeroed["params"])
    np.testing.assert_allclose(small(x), model(x), atol=1e-6)
    assert structured.cost(channels, keep).params == sum(map(np.size, jax.tree.leaves(fewer)))


class TwoInputs(nn.Module):
    @nn.compact
    def __call__(self, tokens, image):
        x = nn.Embed(7, 6, name="embed")(tokens).mean(1)
        y = nn.relu(nn.Dense(9, name="image")(image))
        return nn.Dense(2, name="head")(
            nn.relu(nn.Dense(5, name="both")(x)) + nn.Dense(5, name="y")(y)
        )


@pytest.mark.parametrize("by_name", [True, False])
def test_models_of_several_inputs_are_traced(by_name):
    model = TwoInputs()
    inputs = {"tokens": jnp.ones((3, 4), int), "image": jnp.ones((3, 6))}
    shapes = {"tokens": jax.ShapeDtypeStruct((4,), jnp.int32), "image": (6,)}
    args, kwargs = ((), inputs) if by_name else ((*inputs.values(),), {})
    variables = model.init(jax.random.key(0), *args, **kwargs)
    small, fewer = structured.prune_model(
        *(jax.random.key(0), model, variables, structured.l1, 0.5),
        input_shape=shapes if by_name else (*shapes.values(),),
    )
    assert small.apply(fewer, *args, **kwargs).shape == (3, 2)
    assert fewer["params"]["image"]["kernel"].shape[-1] < 9
