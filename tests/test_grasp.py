"""GraSP against closed forms, a dense Hessian, and what removing a weight does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

import ntksap_jax as nts
from ntksap_jax import criteria, masks


def linear(features):
    def init(key):
        return {"w": jax.random.normal(key, (features, 1))}

    return nts.plain(init, lambda p, x: x @ p["w"], (features,))


def square(outputs, labels):
    return 0.5 * outputs[:, 0] ** 2


def test_closed_form_on_a_quadratic():
    """L = ½ θᵀAθ with A = mean x xᵀ: g = Aθ, H = A, s = θ ⊙ A A θ.

    And the sign says what removal does to the gradient norm: shrinking weight j by a share h
    changes |g|² by -2 h s_j, so that high scores hold the norm up.
    """
    inputs = jax.random.normal(jax.random.key(0), (6, 4))
    theta = jax.random.normal(jax.random.key(1), (4, 1))
    a = inputs.T @ inputs / 6
    score = criteria.grasp(linear(4), temperature=1.0, loss_fn=square)
    scores, _ = score(None, {"w": theta}, {"w": jnp.ones((4, 1), bool)}, (inputs, jnp.zeros(6)))
    np.testing.assert_allclose(scores["w"], theta * (a @ a @ theta), rtol=1e-4)

    @jax.jit
    def gradient_norm(theta):
        gradient = jax.grad(lambda t: jnp.mean(square(inputs @ t, None)))(theta)
        return jnp.sum(gradient**2)

    h = 1e-2
    for j in range(4):
        change = gradient_norm(theta.at[j].multiply(1 - h)) - gradient_norm(theta)
        assert change == pytest.approx(-2 * h * float(scores["w"][j, 0]), rel=0.1, abs=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_dense_hessian_of_the_masked_network(temperature):
    network = oracles.smooth_mlp()
    params = network.init(jax.random.key(0))
    mask = oracles.random_mask(jax.random.key(1), params)
    batch = (jax.random.normal(jax.random.key(2), (5, 4)), jnp.arange(5) % 2)
    weights = masks.map_prunable(lambda m, p: m * p, mask, params)
    leaves, structure = jax.tree.flatten(weights)
    sizes = np.cumsum([leaf.size for leaf in leaves])[:-1]
    kept = oracles.flat(mask)

    def loss(vector):
        parts = [
            part.reshape(leaf.shape)
            for part, leaf in zip(jnp.split(vector, sizes), leaves, strict=True)
        ]
        logits = network.apply(masks.merge(jax.tree.unflatten(structure, parts), params), batch[0])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits / temperature, batch[1])
        return jnp.mean(losses)

    theta = oracles.flat(weights)
    hessian, gradient = jax.jit(lambda theta: (jax.hessian(loss)(theta), jax.grad(loss)(theta)))(
        theta
    )
    want = theta * (np.asarray(hessian) @ (np.asarray(gradient) * kept))
    scores, _ = criteria.grasp(network, temperature=temperature)(None, params, mask, batch)
    want = want * kept
    np.testing.assert_allclose(
        oracles.flat(scores), want, rtol=1e-3, atol=1e-4 * np.abs(want).max()
    )


def test_temperature_errors():
    for temperature in (0, -1.0):
        with pytest.raises(ValueError, match="temperature: got"):
            criteria.grasp(oracles.smooth_mlp(), temperature=temperature)
