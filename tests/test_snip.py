"""SNIP, iterative SNIP and FORCE against the loss's own derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

import ntksap_jax as nts
from ntksap_jax import criteria, masks

NETWORK = oracles.conv_bn()
PARAMS = NETWORK.init(jax.random.key(0))
MASK = oracles.random_mask(jax.random.key(1), PARAMS)
BATCH = (jax.random.normal(jax.random.key(2), (7, 6, 6, 2)), jnp.arange(7) % 3)
PLAIN = oracles.smooth_mlp()
RELU = nts.linen(oracles.ReluMLP(), (4,))


def loss_of_mask(relaxed, apply):
    logits = apply(masks.apply(relaxed, PARAMS), BATCH[0])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, BATCH[1]))


@pytest.mark.parametrize(
    ("make", "statistics", "apply"),
    [
        (criteria.snip, "train", NETWORK.apply_train),
        (criteria.snip, "constant", NETWORK.apply),
        (criteria.snip, "running", NETWORK.apply_running),
        (criteria.iterative_snip, "train", NETWORK.apply_train),
        (criteria.force, "train", NETWORK.apply_train),
    ],
)
def test_the_score_is_the_derivative_by_the_mask(make, statistics, apply):
    """|∂L/∂m| at the mask, which is |θ ∂L/∂θ| where nothing is pruned; for FORCE there too."""
    relaxed = masks.map_prunable(lambda m, p: m.astype(p.dtype), MASK, PARAMS)
    want = np.abs(oracles.flat(jax.jit(jax.grad(loss_of_mask), static_argnums=1)(relaxed, apply)))
    if make is not criteria.force:
        want = want * oracles.flat(MASK)
    got, _ = make(NETWORK, statistics=statistics)(None, PARAMS, MASK, BATCH)
    np.testing.assert_allclose(oracles.flat(got), want, rtol=1e-5, atol=1e-8)


def test_force_brings_weights_back_only_if_asked_to():
    def prune(score, **options):
        seen = []
        options |= {"schedule": [0.3, 0.28, 0.26], "batch": BATCH}
        options["on_round"] = lambda info, mask: seen.append(oracles.flat(mask))
        nts.prune(jax.random.key(0), PARAMS, score, **options)
        return seen

    first, second, third = prune(criteria.force(NETWORK), regrow=True)
    assert (second & ~first).any() or (third & ~second).any()
    kept, iterative = prune(criteria.force(NETWORK)), prune(criteria.iterative_snip(NETWORK))
    np.testing.assert_array_equal(kept, iterative)


@pytest.mark.parametrize("make", [criteria.snip, criteria.grasp, criteria.px])
def test_micro_batches_give_the_full_batch_score(make):
    """Where no batch statistics couple the examples, up to rounding."""
    params = RELU.init(jax.random.key(0))
    mask = oracles.random_mask(jax.random.key(1), params)
    batch = (jax.random.normal(jax.random.key(2), (7, 4)), jnp.arange(7) % 3)
    want = oracles.flat(make(RELU)(None, params, mask, batch)[0])
    for size in (3, 20):
        got = oracles.flat(make(RELU, micro_batch_size=size)(None, params, mask, batch)[0])
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_a_loss_of_ones_own():
    """One loss an example, of whatever the labels are; a mean is refused."""
    params = PLAIN.init(jax.random.key(0))
    mask = masks.create(params)
    inputs = jax.random.normal(jax.random.key(1), (5, 4))
    targets = jax.random.normal(jax.random.key(2), PLAIN.apply(params, inputs).shape)
    score = criteria.snip(PLAIN, loss_fn=lambda outputs, y: jnp.sum((outputs - y) ** 2, axis=-1))
    got, _ = score(None, params, mask, (inputs, targets))

    def loss(params):
        return jnp.sum((PLAIN.apply(params, inputs) - targets) ** 2) / 5

    want = masks.map_prunable(
        lambda m, p, g: jnp.abs(p * g), mask, params, jax.jit(jax.grad(loss))(params)
    )
    np.testing.assert_allclose(oracles.flat(got), oracles.flat(want), rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match=r"loss_fn: returned shape \(\), expected one loss for"):
        criteria.snip(PLAIN, loss_fn=lambda outputs, y: jnp.mean(outputs))(
            None, params, mask, (inputs, targets)
        )
