"""Weights scaled to the inputs that a mask leaves."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ntksap_jax as nts
from ntksap_jax import masks

KEY = jax.random.key(0)
# The word of a leaf, its shape, and the axes that are summed over in an output.
LAYOUTS = {
    "io": ((12, 5), (0,)),
    "oi": ((5, 12), (1,)),
    "ppio": ((3, 3, 4, 5), (0, 1, 2)),
    "ioo": ((12, 2, 3), (0,)),
    "iio": ((2, 6, 3), (0, 1)),
    "sio": ((2, 12, 3), (1,)),
}


@pytest.mark.parametrize("word", LAYOUTS)
def test_outputs_of_white_inputs_have_the_variance_of_the_dense_layer(word):
    """Var(Σ w x) = Σ w² over the inputs: n c² for n weights of size c, however many are left."""
    shape, inputs = LAYOUTS[word]
    signs = jnp.where(jax.random.bernoulli(KEY, shape=shape), 0.3, -0.3)
    params = {"layer": {"kernel": signs}}
    mask = oracles.random_mask(jax.random.key(1), params, density=0.4)
    kept = np.any(mask["layer"]["kernel"], axis=inputs)
    scaled = masks.rescale(params, mask, axes={"layer/kernel": word})["layer"]["kernel"]
    fan_in = np.prod([shape[axis] for axis in inputs])
    np.testing.assert_allclose(np.sum(scaled**2, axis=inputs), fan_in * 0.3**2 * kept, rtol=1e-5)
    np.testing.assert_array_equal(scaled != 0, mask["layer"]["kernel"])
    np.testing.assert_array_equal(np.sign(scaled), np.sign(signs) * mask["layer"]["kernel"])


def test_variance_of_a_network_of_many_layers_under_random_masks():
    """Mean squares of features neither vanish (without it 0.1^4) nor grow, and biases stay."""

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(4):
                x = nn.Dense(256)(x)
            return x

    network = nts.linen(Deep(), (256,))
    params = network.init(KEY)
    mask = oracles.random_mask(jax.random.key(1), params, density=0.1)
    inputs = jax.random.normal(jax.random.key(2), (200, 256))
    scaled, pruned = masks.rescale(params, mask), masks.apply(mask, params)
    squares = [float(jnp.mean(network.apply(p, inputs) ** 2)) for p in (params, scaled, pruned)]
    assert squares[1] == pytest.approx(squares[0], rel=0.3)
    assert squares[2] == pytest.approx(squares[0] * 1e-4, rel=0.3)
    assert scaled["Dense_0"]["bias"] is params["Dense_0"]["bias"]


def test_an_unknown_layout_is_asked_for():
    params = {"weight": jnp.ones((4, 4))}
    with pytest.raises(ValueError, match=r"axes: masks.rescale depends on .* 'weight'"):
        masks.rescale(params, masks.create(params))


def test_outputs_that_keep_nothing_stay_finite_in_half_precision():
    params = {"kernel": jnp.ones((4, 2), jnp.bfloat16)}
    mask = {"kernel": jnp.zeros((4, 2), bool).at[:, 0].set(True)}
    scaled = jax.jit(masks.rescale)(params, mask)["kernel"]
    assert scaled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(scaled, masks.apply(mask, params)["kernel"])
