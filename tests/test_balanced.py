"""Scores of which every layer has the same sum."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ntksap_jax as nts
from ntksap_jax import criteria, masks, ntk

KEY = jax.random.key(3)


class Homogeneous(nn.Module):
    """ReLUs and no biases: of degree one in each layer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in (7, 5):
            x = nn.relu(nn.Dense(features, use_bias=False)(x))
        return nn.Dense(2, use_bias=False)(x)


def layer_sums(scores, size=jnp.abs):
    return [float(jnp.sum(size(leaf))) for leaf in jax.tree.leaves(scores)]


@pytest.mark.parametrize("estimator", [ntk.vjp, ntk.log_vjp])
def test_the_derivatives_of_a_trace_have_the_same_sum_in_every_layer(estimator):
    """Euler's theorem: 2 T for T of degree 2 in each layer, 2 L for the sum of L logarithms."""
    network = nts.linen(Homogeneous(), (4,))
    params = network.init(jax.random.key(0))
    mask = oracles.random_mask(jax.random.key(1), params)
    score = criteria.ntk_sap(network, estimator=estimator, num_samples=2, signed=True)
    scores, metrics = score(KEY, params, mask, None)
    want = 2 * 2 * metrics["trace"] if estimator is ntk.vjp else 2 * 2 * 3
    np.testing.assert_allclose(layer_sums(scores, size=lambda s: s), [want] * 3, rtol=1e-4)


def test_each_layer_sums_to_one_and_keeps_its_order():
    network = oracles.conv_bn()
    params = network.init(jax.random.key(0))
    mask = oracles.random_mask(jax.random.key(1), params)
    score = criteria.ntk_sap(network, num_samples=1, batch_size=4)
    even = criteria.balanced(score)
    (plain, trace), (shares, same) = (each(KEY, params, mask, None) for each in (score, even))
    assert trace == same
    np.testing.assert_allclose(layer_sums(shares), 1, rtol=1e-5)
    for one, two in zip(jax.tree.leaves(plain), jax.tree.leaves(shares), strict=True):
        np.testing.assert_allclose(two, one / np.sum(one), rtol=1e-5)


def test_the_scale_of_a_layer_decides_nothing():
    params = {name: {"kernel": jax.random.normal(KEY, (6, 8))} for name in "ab"}
    params["b"]["kernel"] *= 1000
    mask, _ = nts.prune(KEY, params, criteria.balanced(criteria.magnitude()), schedule=[0.25])
    assert masks.layer_densities(mask) == {"a/kernel": 0.25, "b/kernel": 0.25}
    np.testing.assert_array_equal(mask["a"]["kernel"], mask["b"]["kernel"])


def test_layers_of_a_stack_are_balanced_one_by_one():
    """The criterion's network tells that there is one, though names do not."""

    def init(key):
        return {"blocks": {"weight": jax.random.normal(key, (3, 4, 4))}}

    def apply(params, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["blocks"]["weight"])[0]

    network = nts.plain(init, apply, (4,))
    params = network.init(jax.random.key(0))
    batch = jax.random.normal(KEY, (8, 4)), jnp.arange(8) % 2
    score = criteria.balanced(criteria.snip(network))
    [scores] = jax.tree.leaves(score(KEY, params, masks.create(params), batch)[0])
    np.testing.assert_allclose(np.sum(scores, axis=(1, 2)), 1, rtol=1e-5)


def test_what_is_not_known_of_a_leaf_is_asked_for():
    params = {"weight": jnp.arange(24.0).reshape(2, 3, 4) + 1}
    dense = masks.create(params)
    with pytest.raises(ValueError, match=r"axes: criteria.balanced depends on .* 'weight'"):
        criteria.balanced(criteria.magnitude())(KEY, params, dense, None)
    score = criteria.balanced(criteria.magnitude(), axes={"weight": "sio"})
    shares = score(KEY, params, dense, None)[0]["weight"]
    np.testing.assert_allclose(np.sum(shares, axis=(1, 2)), 1, rtol=1e-5)
    mask, _ = nts.prune(KEY, params, score, schedule=[0.5], scope="layer")
    assert np.sum(mask["weight"], axis=(1, 2)).tolist() == [6, 6]


def test_a_layer_that_scores_zero_stays_so_and_signs_stay():
    params = {"a": {"kernel": jnp.zeros((1, 2))}, "b": {"kernel": jnp.array([[1.0, 3.0]])}}
    score = criteria.balanced(criteria.inverted(criteria.magnitude()))
    scores, _ = score(KEY, params, masks.create(params), None)
    assert scores["a"]["kernel"].tolist() == [[0, 0]]
    assert scores["b"]["kernel"].tolist() == [[-0.25, -0.75]]
