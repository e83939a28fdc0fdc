"""The mask as a hard constraint, whatever the optimiser."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import oracles
import pytest

import ntksap_jax as nts
from ntksap_jax import masks

OPTIMIZERS = {
    "sgd with weight decay": optax.chain(
        optax.add_decayed_weights(1e-2), optax.sgd(0.1, momentum=0.9)
    ),
    "adamw": optax.adamw(1e-2, weight_decay=0.1),
    "lamb": optax.lamb(1e-2),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-2)),
    "scheduled": optax.inject_hyperparams(optax.sgd)(
        optax.cosine_decay_schedule(0.1, 10), momentum=0.9
    ),
    "accumulated": optax.MultiSteps(
        optax.adamw(1e-2), every_k_schedule=2
    ).gradient_transformation(),
}
NETWORK = oracles.smooth_mlp()
PARAMS = NETWORK.init(jax.random.key(0))
MASK = oracles.random_mask(jax.random.key(1), PARAMS, density=0.3)
INPUTS = jax.random.normal(jax.random.key(2), (8, 4))


def loss(params):
    return jnp.mean((NETWORK.apply(params, INPUTS) - 1.0) ** 2)


def steps(optimizer, params, state, count):
    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(count):
        params, state = step(params, state)
    return params, state


def pruned_entries(params):
    return oracles.flat(masks.map_prunable(lambda m, p: p[~m], MASK, params))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_it_is_the_optimiser_on_the_sparse_network(optimizer):
    """As if pruned weights did not exist: the plain optimiser on a network that masks itself."""
    constrained = nts.constrain_to_mask(optimizer, MASK)
    params = masked = masks.apply(MASK, PARAMS)
    trained, state = steps(constrained, params, jax.jit(constrained.init)(params), 6)
    np.testing.assert_array_equal(pruned_entries(trained), 0.0)
    assert loss(trained) < loss(masked)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: loss(masks.apply(MASK, p)))(params)
        updates, state = optimizer.update(gradient, state, params)
        return masks.apply(MASK, optax.apply_updates(params, updates)), state

    plain = jax.jit(optimizer.init)(params)
    for _ in range(6):
        params, plain = step(params, plain)
    np.testing.assert_allclose(oracles.flat(trained), oracles.flat(params), rtol=1e-5, atol=1e-6)
    # A state that went through a file holds the mask too.
    restored = flax.serialization.from_bytes(state, flax.serialization.to_bytes(state))
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_clipping_does_not_see_the_dense_gradient():
    gradient = jax.tree.map(lambda p: jnp.full_like(p, 10.0), PARAMS)
    optimizer = nts.constrain_to_mask(
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)), MASK
    )
    params = masks.apply(MASK, PARAMS)
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(np.linalg.norm(oracles.flat(updates)), 1.0, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_params_that_were_not_masked_are_so_after_one_step(dtype):
    """Exactly, whatever the precision of the updates; the state is that of the masked params."""
    optimizer = nts.constrain_to_mask(optax.sgd(0.1, momentum=0.9), MASK)
    state = optimizer.init(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, state, optimizer.init(masks.apply(MASK, PARAMS)))
    gradient = jax.tree.map(lambda g: g.astype(dtype), jax.grad(loss)(PARAMS))
    updates, state = jax.jit(optimizer.update)(gradient, state, PARAMS)
    assert np.any(pruned_entries(PARAMS) != 0)
    np.testing.assert_array_equal(pruned_entries(optax.apply_updates(PARAMS, updates)), 0.0)
    np.testing.assert_array_equal(pruned_entries(state.inner[0].trace), 0.0)


def test_one_compilation_serves_every_mask():
    traces = 0

    @jax.jit
    def step(params, state):
        nonlocal traces
        traces += 1
        optimizer = nts.constrain_to_mask(optax.sgd(0.1), state.mask)
        return optimizer.update(params, state, params)

    for seed in range(3):
        mask = oracles.random_mask(jax.random.key(seed), PARAMS)
        step(PARAMS, nts.constrain_to_mask(optax.sgd(0.1), mask).init(PARAMS))
    assert traces == 1


def test_extra_arguments_reach_the_optimiser():
    seen = []

    def update(updates, state, params=None, **extra):
        seen.append(extra)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    optimizer = nts.constrain_to_mask(inner, MASK)
    optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, value=3.0)
    assert seen == [{"value": 3.0}]


def test_gradients_that_sam_takes_itself_are_those_of_the_sparse_network():
    """As on the function of the masked params, which no pruned weight moves."""
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.5))
    sam = optax.contrib.sam(optax.sgd(0.1), adversary, sync_period=3, opaque_mode=True)
    optimizer, start = nts.constrain_to_mask(sam, MASK), masks.apply(MASK, PARAMS)
    of_dense = jax.grad(loss)
    of_sparse = jax.grad(lambda params: loss(masks.apply(MASK, params)))
    found, wanted = (
        opt.update(of(start), opt.init(start), start, grad_fn=lambda p, step, of=of: of(p))[0]
        for opt, of in ((optimizer, of_dense), (sam, of_sparse))
    )
    np.testing.assert_allclose(oracles.flat(found), oracles.flat(wanted), rtol=1e-5, atol=1e-7)


def test_donation_and_errors():
    optimizer = nts.constrain_to_mask(optax.sgd(0.1), MASK)
    jax.jit(lambda state: state, donate_argnums=0)(optimizer.init(PARAMS))
    assert masks.num_kept(MASK) > 0  # deleted arrays would raise
    with pytest.raises(ValueError, match="params: got None"):
        optimizer.update(PARAMS, optimizer.init(PARAMS))
    with pytest.raises(ValueError, match="mask: leaf 'Dense_0/kernel' does not exist in params"):
        optimizer.init({"other": jnp.ones(2)})
