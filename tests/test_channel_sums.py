"""The sums of batch normalisation: against NumPy, against Flax's module in every derivative."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import ntksap_jax as nts
from ntksap_jax import ops
from ntksap_jax.models import _layers


def plain(x):
    return jnp.sum(x, axis=tuple(range(x.ndim - 1)))


@pytest.mark.parametrize("shape", [(3,), (1, 4), (5, 3, 2), (2, 3, 4, 5)])
def test_sum_and_broadcast_are_those_of_the_definition(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    expected = x.reshape(-1, shape[-1]).sum(0)
    np.testing.assert_allclose(ops.channel_sum(jnp.float32(x)), expected, atol=1e-5)
    repeated = ops.channel_broadcast(jnp.float32(expected), tuple(shape))
    np.testing.assert_array_equal(repeated, np.broadcast_to(np.float32(expected), shape))


def test_derivatives_of_any_order_and_vmap():
    x, y = np.random.default_rng(0).standard_normal((2, 4, 3, 5, 2), np.float32)

    def through(total, spread):
        def f(x):
            mean = total(x) / x.shape[0]
            return jnp.sum(total(jnp.sin(x) * spread(mean, x.shape)) ** 2)

        return f

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def derivatives(total, spread, x, y):
        f = through(total, spread)
        return (
            jax.grad(f)(x),
            jax.jvp(jax.grad(f), (x,), (y,))[1],
            jax.grad(lambda x: jax.jvp(f, (x,), (y,))[1])(x),
            jax.vmap(jax.grad(f))(jnp.stack([x, y])),
            jax.vmap(f, in_axes=-1)(jnp.stack([x, y], axis=-1)),
        )

    ours = derivatives(ops.channel_sum, ops.channel_broadcast, x, y)
    theirs = derivatives(plain, jnp.broadcast_to, x, y)
    for found, expected in zip(ours, theirs, strict=True):
        scale = 1 + float(jnp.max(jnp.abs(expected)))
        np.testing.assert_allclose(found / scale, expected / scale, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_training_is_by_flax_s_arithmetic(dtype):
    """Outputs, running averages and gradients, with activations that are far from centred."""
    x, weights = np.random.default_rng(0).standard_normal((2, 6, 4, 5, 3), np.float32)
    x = (3 + 2 * x).astype(dtype)
    options = {"use_running_average": False, "momentum": 0.9, "epsilon": 1e-5}
    scaled = {"scale": np.float32([0.5, -1.5, 2.0]), "bias": np.float32([0.1, 0.2, -0.3])}

    @functools.partial(jax.jit, static_argnums=0)
    def outcome(module, x):
        drawn = module.init(jax.random.key(0), x)
        variables = {**drawn, "params": scaled}

        def loss(params, x):
            y, updated = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return jnp.sum(nn.relu(y) * weights), (y, updated)

        return drawn, jax.grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)

    kinds = (_layers.TrainingBatchNorm(**options), nn.BatchNorm(**options))
    (drawn, ours), (expected, theirs) = (outcome(kind, x) for kind in kinds)
    jax.tree.map(np.testing.assert_array_equal, drawn, expected)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for found, wanted in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        assert found.dtype == wanted.dtype
        tolerance = 2e-5 if found.dtype == jnp.float32 else 2e-2
        np.testing.assert_allclose(
            found.astype(np.float32), wanted.astype(np.float32), atol=tolerance, rtol=tolerance
        )


def test_forward_and_backward_sums_are_matrix_products_on_cpu():
    """XLA's own reductions of products, by windows, are the slow ones."""
    x = np.ones((64, 16, 16, 8), np.float32)

    def normalised(module):
        shapes = jax.eval_shape(module.init, jax.random.key(0), x)
        statistics = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)

        def loss(params, x):
            y, _ = module.apply({**statistics, "params": params}, x, mutable=["batch_stats"])
            return jnp.sum(nn.relu(y) ** 2)

        lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(shapes["params"], x)
        return lowered.compile().as_text()

    ours, theirs = (
        normalised(kind(use_running_average=False))
        for kind in (_layers.TrainingBatchNorm, nn.BatchNorm)
    )
    assert " reduce-window(" in theirs
    assert ours.count(" dot(") >= 4
    assert ours.count(" reduce-window(") < theirs.count(" reduce-window(")


def test_a_network_in_training_mode_is_still_refused():
    with pytest.raises(ValueError, match=r"such as ntksap_jax.linen\(..., train=False\)"):
        nts.linen(Normalised(), (4, 4, 3), train=True)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return _layers.batch_norm(train=train, name="bn")(x)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(kind):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    x = jax.random.normal(jax.random.key(0), (4, 3, 5))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, jax.NamedSharding(mesh, PartitionSpec("data")))
        found = jax.jit(jax.grad(lambda x: jnp.sum(ops.channel_sum(x) ** 2)))(sharded)
    expected = jnp.broadcast_to(2 * plain(x), x.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_of_shard_map(check_vma):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.random.normal(jax.random.key(0), (4, 3, 5))

    def local(x):
        return jax.lax.psum(ops.channel_sum(x), "data")

    specs = {"in_specs": PartitionSpec("data"), "out_specs": PartitionSpec()}
    found = jax.shard_map(local, mesh=mesh, check_vma=check_vma, **specs)(x)
    np.testing.assert_allclose(found, plain(x), rtol=1e-5, atol=1e-5)
