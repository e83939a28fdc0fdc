"""The mask as a hard constraint, whatever the optimiser."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

import ntksap_jax as nts
from ntksap_jax import masks

OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "sgd with weight decay": optax.chain(
        optax.add_decayed_weights(1e-2), optax.sgd(0.1, momentum=0.9)
    ),
    "adam": optax.adam(1e-2),
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
    return np.concatenate(
        [
            np.asarray(p)[~np.asarray(m)]
            for p, m in zip(
                jax.tree.leaves(masks.map_prunable(lambda m, p: p, MASK, params)),
                jax.tree.leaves(MASK),
                strict=True,
            )
        ]
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_pruned_weights_stay_exactly_zero_and_the_others_learn(optimizer):
    constrained = nts.constrain_to_mask(optimizer, MASK)
    params = masks.apply(MASK, PARAMS)
    trained, state = steps(constrained, params, constrained.init(params), 10)
    np.testing.assert_array_equal(pruned_entries(trained), 0.0)
    assert loss(trained) < loss(params)
    # ... also from a state that went through a file.
    restored = flax.serialization.from_bytes(state, flax.serialization.to_bytes(state))
    restored = jax.tree.map(jnp.asarray, restored)
    further, _ = steps(constrained, trained, restored, 10)
    want, _ = steps(constrained, trained, state, 10)
    np.testing.assert_array_equal(pruned_entries(further), 0.0)
    np.testing.assert_array_equal(oracles.flat(further), oracles.flat(want))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_it_is_the_optimiser_on_the_sparse_network(optimizer):
    """As if pruned weights did not exist: the plain optimiser on a network that masks itself."""
    constrained = nts.constrain_to_mask(optimizer, MASK)
    params = masks.apply(MASK, PARAMS)
    got, _ = steps(constrained, params, constrained.init(params), 6)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: loss(masks.apply(MASK, p)))(params)
        updates, state = optimizer.update(gradient, state, params)
        return masks.apply(MASK, optax.apply_updates(params, updates)), state

    state = optimizer.init(params)
    for _ in range(6):
        params, state = step(params, state)
    np.testing.assert_allclose(oracles.flat(got), oracles.flat(params), rtol=1e-5, atol=1e-6)


def test_clipping_does_not_see_the_dense_gradient():
    gradient = jax.tree.map(lambda p: jnp.full_like(p, 10.0), PARAMS)
    optimizer = nts.constrain_to_mask(
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)), MASK
    )
    params = masks.apply(MASK, PARAMS)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(optax.tree.norm(updates), 1.0, rtol=1e-5)


def test_weights_that_were_not_zero_become_zero_at_the_first_step():
    optimizer = nts.constrain_to_mask(optax.adamw(1e-3), MASK)
    trained, _ = steps(optimizer, PARAMS, optimizer.init(PARAMS), 1)
    assert np.any(pruned_entries(PARAMS) != 0)
    np.testing.assert_array_equal(pruned_entries(trained), 0.0)


def test_momentum_of_pruned_weights_stays_zero():
    optimizer = nts.constrain_to_mask(optax.sgd(0.1, momentum=0.9), MASK)
    _, state = steps(optimizer, PARAMS, optimizer.init(PARAMS), 3)
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


def test_donating_the_state_leaves_the_mask():
    optimizer = nts.constrain_to_mask(optax.sgd(0.1), MASK)
    jax.jit(lambda state: state, donate_argnums=0)(optimizer.init(PARAMS))
    assert masks.num_kept(MASK) > 0  # deleted arrays would raise


def test_extra_arguments_reach_the_optimiser():
    seen = []

    def update(updates, state, params=None, **extra):
        seen.append(extra)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    optimizer = nts.constrain_to_mask(inner, MASK)
    optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, value=3.0)
    assert seen == [{"value": 3.0}]


def test_errors():
    optimizer = nts.constrain_to_mask(optax.sgd(0.1), MASK)
    with pytest.raises(ValueError, match="params: got None"):
        optimizer.update(PARAMS, optimizer.init(PARAMS))
    with pytest.raises(ValueError, match="mask: leaf 'Dense_0/kernel' does not exist in params"):
        optimizer.init({"other": jnp.ones(2)})
