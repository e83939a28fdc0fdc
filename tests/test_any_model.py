"""The same network in linen, nnx and plain functions; model families beyond convolutions."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

import ntksap_jax as nts
from ntksap_jax import connectivity, criteria, masks, ntk, ops, scopes

KEY = jax.random.key(0)
BATCH = (jax.random.normal(jax.random.key(1), (4, 6, 6, 2)), jnp.arange(4) % 3)


# -- One network, three ways ---------------------------------------------------------------------


class ConvBN(nnx.Module):
    """`oracles.ConvBN` in nnx, with the names that linen gives."""

    def __init__(self, *, rngs):
        self.Conv_0 = nnx.Conv(2, 4, (3, 3), use_bias=False, rngs=rngs)
        self.BatchNorm_0 = nnx.BatchNorm(4, rngs=rngs)
        self.Dense_0 = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.Dense_0(nnx.relu(self.BatchNorm_0(self.Conv_0(x))).mean((1, 2)))


def plain_conv_bn(init):
    """`oracles.ConvBN` as functions: one for each way to normalise."""

    def forward(params, x, statistics):
        x = ops.conv2d(x, params["Conv_0"]["kernel"])
        mean, var = statistics(x)
        x = (x - mean) * (jax.lax.rsqrt(var + 1e-5) * params["BatchNorm_0"]["scale"])
        x = jax.nn.relu(x + params["BatchNorm_0"]["bias"]).mean((1, 2))
        return x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]

    def of_batch(x):
        return x.mean((0, 1, 2)), x.var((0, 1, 2))

    def constant(x):
        return of_batch(jax.lax.stop_gradient(x))

    def calibrate(params, inputs, *, unbiased=False):
        mean, var = constant(ops.conv2d(inputs, params["Conv_0"]["kernel"]))
        count = inputs.size // 2
        var = var * count / (count - 1) if unbiased else var
        return functools.partial(forward, statistics=lambda x: (mean, var))

    network = nts.plain(init, functools.partial(forward, statistics=constant), (6, 6, 2))
    return network._replace(
        apply_train=functools.partial(forward, statistics=of_batch),
        apply_running=functools.partial(forward, statistics=lambda x: (jnp.zeros(4), jnp.ones(4))),
        calibrate=calibrate,
    )


@pytest.fixture(scope="module")
def same():
    """The network three ways, with the same initial weights for the same key."""
    linen = oracles.conv_bn()
    of_nnx = nts.nnx(lambda rngs: ConvBN(rngs=rngs), (6, 6, 2))
    return {
        "linen": linen,
        "nnx": of_nnx._replace(init=linen.init),
        "plain": plain_conv_bn(linen.init),
    }


small = functools.partial(criteria.ntk_sap, num_samples=2, batch_size=4)


@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        pytest.param(small, 1e-5, id="jvp"),
        pytest.param(criteria.synflow, 1e-5, id="synflow"),
        pytest.param(
            functools.partial(small, estimator=ntk.finite_difference, calibrate="two_pass"),
            1e-2,  # where a ReLU flips, a finite difference jumps
            id="finite_difference two_pass",
            marks=pytest.mark.long,
        ),
    ],
)
def test_linen_nnx_and_plain_functions_give_the_same_scores(same, make, tolerance):
    params = same["linen"].init(KEY)
    mask = oracles.random_mask(jax.random.key(2), params)
    want = oracles.flat(make(same["linen"])(KEY, params, mask, BATCH)[0])
    assert np.linalg.norm(want) > 0
    for name in ("nnx", "plain"):
        found = oracles.flat(make(same[name])(KEY, params, mask, BATCH)[0])
        assert np.linalg.norm(found - want) <= tolerance * np.linalg.norm(want), name


def test_nnx_computes_and_differentiates_as_linen_does(same):
    """In every one of a network's ways to normalise; on weights for which that matters."""
    params = jax.tree.map(lambda p: p + 0.3, same["linen"].init(KEY))
    inputs = 2 * BATCH[0] + 1

    def evaluate(network, params):
        biased, unbiased = (network.calibrate(params, inputs, unbiased=u) for u in (False, True))
        functions = (network.apply, network.apply_train, network.apply_running, biased, unbiased)
        return jnp.stack([fn(params, inputs) for fn in functions])

    def value_and_tangent(network):
        tangent = jax.tree.map(jnp.ones_like, params)
        return jax.jit(lambda p: jax.jvp(lambda q: evaluate(network, q), (p,), (tangent,)))(params)

    want = value_and_tangent(same["linen"])
    np.testing.assert_allclose(want[0][0], want[0][1], rtol=1e-5, atol=1e-6)
    assert np.linalg.norm(want[1][0] - want[1][1]) > 0.1  # constant, and not
    for name in ("nnx", "plain"):
        for one, other in zip(value_and_tangent(same[name]), want, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4, err_msg=name)


# -- Normalisation without batch statistics ------------------------------------------------------


def pooled(x):
    return x.mean((1, 2))


def linen_group_norm():
    layers = [nn.Conv(4, (3, 3)), nn.GroupNorm(2), nn.relu, pooled, nn.Dense(3)]
    return nts.linen(nn.Sequential(layers), (6, 6, 2))


def nnx_layer_norm():
    def make(rngs):
        conv, head = nnx.Conv(2, 4, (3, 3), rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
        return nnx.Sequential(conv, nnx.LayerNorm(4, rngs=rngs), nnx.relu, pooled, head)

    return nts.nnx(make, (6, 6, 2))


@pytest.mark.parametrize("make", [linen_group_norm, nnx_layer_norm])
def test_normalisation_without_batch_statistics(make):
    """Every example is by itself, all kernels are scored, and nothing else is."""
    network = make()
    params = network.init(KEY)
    mask = masks.create(params)
    assert sorted(path.split("/")[-1] for path in masks.leaf_paths(mask)) == ["kernel", "kernel"]
    score = small(network, num_samples=1, batch_size=3)
    scores, metrics = score(KEY, params, mask, None)
    assert all(np.any(leaf) for leaf in masks.leaf_paths(scores).values())
    assert np.isfinite(oracles.flat(scores)).all() and metrics["trace"] > 0
    inputs, apply = BATCH[0], jax.jit(network.apply)
    others = apply(params, inputs.at[1:].multiply(-2))  # nothing goes from one example to another
    np.testing.assert_allclose(apply(params, inputs)[:1], others[:1], rtol=1e-5, atol=1e-6)


# -- Attention and embeddings --------------------------------------------------------------------

LENGTH, FEATURES, VOCABULARY = 5, 8, 11


class BlockLinen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Embed(VOCABULARY, FEATURES, name="embed")(x)
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(nn.LayerNorm()(x), mask=mask)
        x = x + nn.Dense(FEATURES, name="mlp")(nn.gelu(nn.Dense(16, name="wide")(x)))
        return nn.Dense(VOCABULARY, name="head")(x)


class BlockNnx(nnx.Module):
    def __init__(self, *, rngs):
        self.embed = nnx.Embed(VOCABULARY, FEATURES, rngs=rngs)
        self.norm = nnx.LayerNorm(FEATURES, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            2, FEATURES, decode=False, dropout_rate=0.1, rngs=rngs
        )
        self.wide = nnx.Linear(FEATURES, 16, rngs=rngs)
        self.mlp = nnx.Linear(16, FEATURES, rngs=rngs)
        self.head = nnx.Linear(FEATURES, VOCABULARY, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        mask = nnx.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + self.attention(self.norm(x), mask=mask)
        x = x + self.mlp(nnx.gelu(self.wide(x)))
        return self.head(x)


BLOCKS = {
    "linen": functools.partial(nts.linen, BlockLinen()),
    "nnx": functools.partial(nts.nnx, lambda rngs: BlockNnx(rngs=rngs)),
}
TOKENS = jax.random.randint(jax.random.key(3), (4, LENGTH), 0, VOCABULARY)


@pytest.fixture(scope="module", params=BLOCKS)
def language_model(request):
    """A network of tokens, one of embedded tokens, and params for both."""
    network = BLOCKS[request.param]((LENGTH,), dtype=jnp.int32)
    embedded = BLOCKS[request.param]((LENGTH, FEATURES))
    params = network.init(KEY)
    jax.tree.map(np.testing.assert_array_equal, params, embedded.init(KEY))
    return network, embedded, params


def test_an_embedding_passes_on_what_is_embedded(language_model):
    network, embedded, params = language_model
    of_tokens = jax.jit(network.apply)
    outputs = of_tokens(params, TOKENS)
    vectors = params["embed"]["embedding"][TOKENS]
    for each in (network, embedded):
        found = jax.jit(each.apply)(params, vectors)
        np.testing.assert_allclose(found, outputs, rtol=1e-6, atol=1e-6)
    causal = of_tokens(params, TOKENS.at[:, -1].set(0))[:, :-1]
    np.testing.assert_allclose(causal, outputs[:, :-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("language_model", ["linen"], indirect=True)
def test_attention_scores_of_tokens_and_of_noise_after_the_embedding(language_model):
    """Attention, MLP and head by default; embeddings by choice."""
    network, embedded, params = language_model
    mask = masks.create(params)
    found = masks.leaf_paths(mask)
    roles = {path.split("/")[0] for path in found}
    assert roles == {"attention", "wide", "mlp", "head"}
    assert found["attention/query/kernel"].shape == (FEATURES, 2, FEATURES // 2)
    assert found["attention/out/kernel"].shape == (2, FEATURES // 2, FEATURES)

    score, score_embedded = (
        small(each, num_samples=1, reinit=False, inputs="data") for each in (network, embedded)
    )
    vectors = params["embed"]["embedding"][TOKENS]
    of_tokens = oracles.flat(score(KEY, params, mask, (TOKENS, None))[0])
    of_vectors, noise = (
        oracles.flat(score_embedded(KEY, params, mask, (inputs, None))[0])
        for inputs in (vectors, jax.random.normal(KEY, vectors.shape))
    )
    np.testing.assert_allclose(of_vectors, of_tokens, rtol=1e-4, atol=1e-4 * of_tokens.max())
    assert np.isfinite(noise).all() and not np.allclose(noise, of_tokens, rtol=0.1)
    every = masks.create(params, include="kernel|embedding", exclude="^head")
    assert {path.split("/")[0] for path in masks.leaf_paths(every)} == roles - {"head"} | {"embed"}


@pytest.mark.parametrize("language_model", ["nnx"], indirect=True)
def test_attention_is_searched_and_floors_hold(language_model):
    network, embedded, params = language_model
    score = small(embedded, num_samples=1)  # noise is the default, as everywhere
    floors = scopes.Global(min_weights=4, min_channels=1)
    mask, _ = nts.prune(KEY, params, score, schedule=[0.4, 0.1], scope=floors)
    assert masks.num_kept(mask) == round(0.1 * masks.num_prunable(mask))
    kept = {path: int(leaf.sum()) for path, leaf in masks.leaf_paths(mask).items()}
    assert min(kept.values()) >= 4
    for other in (criteria.magnitude(), criteria.snip(network, loss_fn=of_next_token)):
        batch = (TOKENS, TOKENS)
        mask, _ = nts.prune(KEY, params, other, schedule=[0.5], batch=batch, scope=floors)
        assert masks.num_kept(mask) == round(0.5 * masks.num_prunable(mask))


def of_next_token(logits, tokens):
    rows = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.take_along_axis(rows, tokens[:, 1:, None], axis=-1).sum((1, 2))


def test_paths_through_attention_are_an_error_that_says_so(language_model):
    network, embedded, params = language_model
    mask = masks.create(params)
    of_vectors = r"network takes '\w+' of \d value.*no sum over paths"
    of_tokens = r"network takes '\w+' of integers.*embedded inputs"
    for model, match in ((embedded, of_vectors), (network, of_tokens)):
        with pytest.raises(ValueError, match=match):
            connectivity.analyse(model, mask)
        with pytest.raises(ValueError, match=match):
            criteria.synflow(model)(KEY, params, mask, None)
    with pytest.raises(ValueError, match=r"takes int32.*jax.random.randint.*after the embedding"):
        small(network)


@pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS.keys())
def test_embeddings_of_inputs_of_another_type(make):
    with pytest.raises(ValueError, match=r"embedding 'embed' is given float32.*dtype=jnp.int32"):
        make((LENGTH,))
    with pytest.raises(ValueError, match=r"float32 of shape \(\d, 5, 7\).*its 8 features"):
        make((LENGTH, FEATURES - 1))


# -- Equinox -------------------------------------------------------------------------------------


class LinenConv(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x)).mean((1, 2))
        return nn.Dense(3, name="head")(x)


class EquinoxConv(eqx.Module):
    conv: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __init__(self, key):
        conv_key, head_key = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(2, 4, 3, padding=1, key=conv_key)
        self.head = eqx.nn.Linear(4, 3, key=head_key)

    def __call__(self, x):
        return self.head(jax.nn.relu(self.conv(jnp.moveaxis(x, -1, 0))).mean((1, 2)))


def test_equinox_by_its_own_partition():
    """Scores are those of the same network in linen, with weights in its layout."""

    def init(key):
        return eqx.filter(EquinoxConv(key), eqx.is_inexact_array)

    static = eqx.filter(EquinoxConv(KEY), eqx.is_inexact_array, inverse=True)

    def apply(params, inputs):
        return jax.vmap(eqx.combine(params, static))(inputs)

    network = nts.plain(init, apply, (6, 6, 2))
    params = network.init(KEY)
    mask = masks.create(params)
    assert set(masks.leaf_paths(mask)) == {"conv/weight", "head/weight"}

    conv, head = params.conv, params.head
    theirs = {
        "conv": {"kernel": conv.weight.transpose(2, 3, 1, 0), "bias": conv.bias[:, 0, 0]},
        "head": {"kernel": head.weight.T, "bias": head.bias},
    }
    linen = nts.linen(LinenConv(), (6, 6, 2))
    score = criteria.snip(network)
    found, _ = score(KEY, params, mask, BATCH)
    want, _ = criteria.snip(linen)(KEY, theirs, masks.create(theirs), BATCH)
    np.testing.assert_allclose(
        found.conv.weight, want["conv"]["kernel"].transpose(3, 2, 0, 1), rtol=1e-3, atol=1e-6
    )
    np.testing.assert_allclose(found.head.weight, want["head"]["kernel"].T, rtol=1e-3, atol=1e-6)
    mask, _ = nts.prune(KEY, params, score, schedule=[0.3], batch=BATCH)
    assert masks.num_kept(mask) == round(0.3 * masks.num_prunable(mask))
    assert jax.jit(apply)(masks.apply(mask, params), BATCH[0]).shape == (4, 3)
