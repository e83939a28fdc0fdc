"""Criteria made of criteria."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ntksap_jax import criteria, masks, scopes

NETWORK = oracles.conv_bn()
PARAMS = NETWORK.init(jax.random.key(0))
DENSE = masks.create(PARAMS)
BATCH = (jax.random.normal(jax.random.key(2), (4, 6, 6, 2)), jnp.arange(4) % 3)
KEY = jax.random.key(3)


@pytest.mark.parametrize("make", [criteria.magnitude, lambda: criteria.synflow(NETWORK)])
def test_inverted_prunes_the_best(make):
    scores, _ = make()(KEY, PARAMS, DENSE, None)
    turned, _ = criteria.inverted(make())(KEY, PARAMS, DENSE, None)
    best = scopes.Global().select(scores, DENSE, density=0.5)
    worst = scopes.Global().select(turned, DENSE, density=0.5)
    assert not np.any(oracles.flat(best) & oracles.flat(worst))
    kept, pruned = (oracles.flat(scores)[oracles.flat(mask)] for mask in (worst, best))
    assert kept.max() <= pruned.min()


def test_inverted_goes_on_from_a_mask():
    mask = oracles.random_mask(jax.random.key(1), PARAMS)
    turned, _ = criteria.inverted(criteria.magnitude())(KEY, PARAMS, mask, None)
    smaller = scopes.Global().select(turned, mask, density=0.3)
    assert not np.any(oracles.flat(smaller) & ~oracles.flat(mask))


def test_inverted_force_still_brings_weights_back():
    mask = oracles.random_mask(jax.random.key(1), PARAMS)
    scores, _ = criteria.inverted(criteria.force(NETWORK))(KEY, PARAMS, mask, BATCH)
    assert np.any(oracles.flat(scores)[~oracles.flat(mask)])


def test_fresh_weights_ignore_the_given_ones_and_differ_by_key():
    score = criteria.fresh_weights(criteria.magnitude(), NETWORK)
    other = jax.tree.map(lambda p: p + 1, PARAMS)
    given = [oracles.flat(score(KEY, params, DENSE, None)[0]) for params in (PARAMS, other)]
    np.testing.assert_array_equal(*given)
    anew = oracles.flat(score(jax.random.key(4), PARAMS, DENSE, None)[0])
    assert not np.any(anew == given[0])


def test_noise_takes_the_place_of_the_inputs():
    seen = []

    def spy(key, params, mask, batch):
        seen.append(batch)
        return {}, {}

    noisy = criteria.noise_inputs(spy)
    noisy(KEY, None, None, (jnp.full((500, 4), 7.0), jnp.arange(500)))
    noisy(jax.random.key(4), None, None, (jnp.full((500, 4), 7.0), jnp.arange(500)))
    (first, labels), (second, _) = seen
    assert labels.tolist() == list(range(500))
    assert abs(float(first.mean())) < 0.1 and float(first.std()) == pytest.approx(1, abs=0.1)
    assert not np.any(np.asarray(first) == np.asarray(second))
    noisy(KEY, None, None, (jnp.zeros((5, 4), jnp.uint8), None))
    assert seen[-1][0].dtype == jnp.float32
    with pytest.raises(ValueError, match="batch: got None"):
        noisy(KEY, None, None, None)
    with pytest.raises(TypeError, match="network: got ConvBN"):
        criteria.fresh_weights(spy, oracles.ConvBN())
