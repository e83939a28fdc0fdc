"""PX against an explicit enumeration of all paths."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles

import ntksap_jax as nts
from ntksap_jax import criteria, masks


def two_layers():
    model = oracles.ReluMLP(features=(5,), outputs=3)
    network = nts.linen(model, (4,))
    params = network.init(jax.random.key(0))
    # Biases move the gates, but begin no path.
    params["Dense_0"]["bias"] = jax.random.normal(jax.random.key(5), (5,))
    params["Dense_1"]["bias"] = jax.random.normal(jax.random.key(6), (3,))
    return network, params


def test_enumeration_of_paths_on_a_two_layer_relu_network():
    network, params = two_layers()
    mask = oracles.random_mask(jax.random.key(1), params)
    inputs = np.asarray(jax.random.normal(jax.random.key(2), (6, 4)))
    m1, m2 = (np.asarray(mask[name]["kernel"]) for name in ("Dense_0", "Dense_1"))
    w1 = np.asarray(params["Dense_0"]["kernel"]) * m1
    w2 = np.asarray(params["Dense_1"]["kernel"]) * m2
    gates = inputs @ w1 + np.asarray(params["Dense_0"]["bias"]) > 0

    data, kernel = np.zeros(3), np.zeros(3)
    paths = list(itertools.product(range(4), range(5), range(3)))
    for i, j, k in paths:
        if m1[i, j] and m2[j, k]:
            data[k] += sum(gates[n, j] * inputs[n, i] ** 2 for n in range(6))
            kernel[k] += w1[i, j] ** 2 * w2[j, k] ** 2
    want1, want2 = np.zeros_like(w1), np.zeros_like(w2)
    for i, j, k in paths:
        share = data[k] * w1[i, j] ** 2 * w2[j, k] ** 2
        want1[i, j] += share
        want2[j, k] += share

    scores, _ = criteria.px(network)(None, params, mask, (jnp.asarray(inputs), None))
    got = oracles.flat(scores)
    want = np.concatenate([want1.ravel(), want2.ravel()])
    np.testing.assert_allclose(got / got.sum(), want / want.sum(), rtol=1e-5, atol=1e-9)


def test_gates_come_from_the_data():
    """The output that dead units alone feed is not reached by any activated path."""
    network, params = two_layers()
    params["Dense_0"]["bias"] = jnp.array([-1e3, -1e3, 1e3, 1e3, 1e3])  # units 0 and 1 are off
    params["Dense_1"]["kernel"] = params["Dense_1"]["kernel"].at[2:, 0].set(0.0)
    inputs = jax.random.normal(jax.random.key(2), (6, 4))
    scores, _ = criteria.px(network)(None, params, masks.create(params), (inputs, None))
    assert not np.any(scores["Dense_1"]["kernel"][:, 0])
    assert np.all(np.asarray(scores["Dense_1"]["kernel"][:, 1:]) > 0)


class Residual(nn.Module):
    """Convolutions, a shortcut and normalisation; `gates` replace the ReLUs."""

    gates: tuple | None = None

    @nn.compact
    def __call__(self, x):
        def activate(y, i):
            if self.gates is not None:
                return y * self.gates[i]
            if self.is_mutable_collection("intermediates"):
                self.sow("intermediates", "gates", y > 0)
            return nn.relu(y)

        y = activate(nn.Conv(4, (3, 3), use_bias=False)(x), 0)
        scale = self.param("scale", nn.initializers.uniform(), (4,))
        z = activate(nn.Conv(4, (3, 3), use_bias=False)(y) * scale, 1) + y
        return nn.Dense(3, use_bias=False)(z.mean((1, 2)))


def test_three_copies_of_a_residual_network():
    """The released code's way: copies of the network with weights 1 and θ², gates handed over."""
    network = nts.linen(Residual(), (5, 5, 2))
    params = network.init(jax.random.key(0))
    mask = oracles.random_mask(jax.random.key(1), params)
    inputs = jax.random.normal(jax.random.key(2), (7, 5, 5, 2))
    masked = masks.apply(mask, params)

    def apply(gates, params, x):
        return Residual(gates).apply({"params": params}, x, mutable="intermediates")

    @jax.jit
    def by_copies(masked):
        gates = apply(None, masked, inputs)[1]["intermediates"]["gates"]
        ones = jax.tree.map(lambda leaf: (leaf != 0).astype(float), masked)
        activation = apply(gates, ones, inputs**2)[0].sum(axis=0)

        def bound(squares):
            return jnp.sum(apply((1.0, 1.0), squares, jnp.ones((1, 5, 5, 2)))[0] * activation)

        squares = jax.tree.map(jnp.square, masked)
        return masks.map_prunable(lambda m, s, g: s * g, mask, squares, jax.grad(bound)(squares))

    want = by_copies(masked)
    got, _ = criteria.px(network, micro_batch_size=3)(None, params, mask, (inputs, None))
    got, want = oracles.flat(got), oracles.flat(want)
    np.testing.assert_allclose(got / got.sum(), want / want.sum(), rtol=1e-4, atol=1e-9)


def test_integer_images_are_squared_as_numbers():
    params = {"w": jnp.ones((2, 1))}
    network = nts.plain(lambda key: params, lambda p, x: x @ p["w"], (2,))
    mask = masks.create(params)
    images = np.array([[10, 16]], np.uint8)  # 16² is 0 modulo 256
    scores = [
        criteria.px(network)(None, params, mask, (batch, None))[0]["w"]
        for batch in (images, images.astype(np.float32))
    ]
    np.testing.assert_array_equal(*scores)
