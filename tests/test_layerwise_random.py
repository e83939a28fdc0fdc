"""Random pruning by layer densities: exact counts, nested rounds, the Erdős-Rényi formula."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ntksap_jax as nts
from ntksap_jax import criteria, masks, schedules, scopes

SHAPES = {"a": (3, 3, 4, 8), "b": (32, 5), "c": (1, 1, 8, 8)}
ERK = criteria.erk(axes={"a|c": "ppio"})
MASK = {name: jnp.ones(shape, bool) for name, shape in SHAPES.items()}
SIZES = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}
TOTAL = sum(SIZES.values())


@given(st.fixed_dictionaries({name: st.floats(0.05, 1.0) for name in SHAPES}), st.integers(0, 99))
def test_the_given_densities_come_out(densities, seed):
    """At the total density that they amount to, each layer has its own, to a weight or two."""
    total = sum(densities[name] * SIZES[name] for name in SHAPES) / TOTAL
    score = criteria.layerwise_random(densities)
    scores, _ = score(jax.random.key(seed), None, MASK, None)
    mask = scopes.Global().select(scores, MASK, density=min(total, 1.0))
    for name, density in densities.items():
        assert masks.num_kept({name: mask[name]}) == pytest.approx(density * SIZES[name], abs=2)


def erk_counts(target):
    """ε ∝ sum of dimensions over their product, capped at 1, the rest shared out again."""
    raw = {name: sum(shape) for name, shape in SHAPES.items()}  # expected number, up to a factor
    dense = set()
    while True:
        left = target - sum(SIZES[name] for name in dense)
        scale = left / sum(raw[name] for name in SHAPES if name not in dense)
        over = {name for name in SHAPES if name not in dense and scale * raw[name] > SIZES[name]}
        if not over:
            return {name: SIZES[name] if name in dense else scale * raw[name] for name in SHAPES}
        dense |= over


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6, 0.9])
def test_erk_densities_at_every_total(density):
    scores, _ = ERK(jax.random.key(0), None, MASK, None)
    mask = scopes.Global().select(scores, MASK, density=density)
    for name, count in erk_counts(density * TOTAL).items():
        assert int(mask[name].sum()) == pytest.approx(count, abs=2), name


def test_many_rounds_give_the_densities_of_one():
    params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
    counts = []
    for rounds in (1, 6):
        schedule = schedules.exponential(0.1, rounds=rounds)
        mask, _ = nts.prune(jax.random.key(0), params, ERK, schedule=schedule, mask=MASK)
        counts.append([int(leaf.sum()) for leaf in jax.tree.leaves(mask)])
    np.testing.assert_allclose(*counts, atol=1)


def test_within_a_layer_each_weight_is_as_likely():
    mask = {"w": jnp.ones((20, 5), bool)}
    kept = np.zeros((20, 5))
    score = jax.jit(criteria.erk())
    for seed in range(300):
        scores, _ = score(jax.random.key(seed), None, mask, None)
        kept += np.asarray(scopes.Global().select(scores, mask, density=0.2)["w"])
    # Binomial(300, 0.2): mean 60, deviation 6.9.
    assert kept.min() > 60 - 5 * 6.9 and kept.max() < 60 + 5 * 6.9


def test_densities_of_another_mask():
    """The random baseline with the layer densities that a criterion found."""
    network = oracles.conv_bn(4, 8)
    params = network.init(jax.random.key(0))
    schedule = schedules.exponential(0.1, rounds=1)
    found, _ = nts.prune(jax.random.key(1), params, criteria.magnitude(), schedule=schedule)
    score = criteria.layerwise_random(masks.layer_densities(found))
    drawn, _ = nts.prune(jax.random.key(2), params, score, schedule=schedule)
    counts = ([int(leaf.sum()) for leaf in jax.tree.leaves(tree)] for tree in (drawn, found))
    np.testing.assert_allclose(*counts, atol=1)
    assert masks.digest(drawn) != masks.digest(found)


def test_a_density_of_zero_empties_the_layer():
    """As that of a layer which another criterion killed."""
    score = criteria.layerwise_random({"a": 0.0, "b": 0.5, "c": 0.0})
    scores, _ = score(jax.random.key(0), None, MASK, None)
    mask = scopes.Global().select(scores, MASK, density=80 / TOTAL)
    assert masks.layer_densities(mask) == {"a": 0.0, "b": 0.5, "c": 0.0}


def test_errors():
    with pytest.raises(ValueError, match="densities: got -0.1 for leaf 'a'"):
        criteria.layerwise_random({"a": -0.1})
    with pytest.raises(ValueError, match="densities: leaf 'c' has no density"):
        criteria.layerwise_random({"a": 0.1, "b": 0.1})(jax.random.key(0), None, MASK, None)
    with pytest.raises(ValueError, match="'d' is no prunable leaf. They are: a, b, c"):
        criteria.layerwise_random(dict.fromkeys("abcd", 0.1))(jax.random.key(0), None, MASK, None)
