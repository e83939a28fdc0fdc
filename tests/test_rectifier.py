"""ops.relu is jax.nn.relu, and keeps one array where that keeps two."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ntksap_jax import ops
from ntksap_jax.models._layers import _larger, _taps

VALUES = [-jnp.inf, -2.0, -1e-30, -0.0, 0.0, 1e-30, 3.0, jnp.inf, jnp.nan]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap])
def test_value_and_derivatives_are_those_of_jax(transform, dtype):
    x = jnp.array(VALUES, dtype)
    cotangent = jnp.arange(1.0, 10.0).astype(dtype)

    def forward(relu, x, t):
        return transform(lambda x, t: jax.jvp(relu, (x,), (t,)))(x, t)

    def back(relu, x, t):
        return transform(lambda x, t: jax.vjp(relu, x)[1](t)[0])(x, t)

    def twice(relu, x, t):
        return jax.grad(lambda x: jnp.sum(jax.jvp(lambda x: relu(x) ** 2, (x,), (t,))[1]))(x)

    for each in (forward, back, twice):
        got, want = (each(relu, x, cotangent) for relu in (ops.relu, jax.nn.relu))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(np.float32(a), np.float32(b))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_over_devices(kind):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])
    x = jax.device_put(jnp.arange(-4.0, 4.0), NamedSharding(mesh, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(lambda x: jnp.sum(ops.relu(x) ** 2)))(x)
    np.testing.assert_array_equal(gradient, 2 * np.maximum(np.arange(-4.0, 4.0), 0))
    assert gradient.sharding == x.sharding


def test_the_input_is_not_kept_beside_the_output():
    """Between a convolution and maxima that read it twice, XLA would keep both."""

    def temporary(relu):
        def loss(kernel, x):
            for _ in range(2):
                x = relu(2 * ops.conv2d(x, kernel) + 1)
                x = functools.reduce(_larger, _taps(x, 2, 2))
            return jnp.sum(x**2)

        shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((3, 3, 8, 8), (16, 32, 32, 8))]
        compiled = jax.jit(jax.grad(loss)).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    outputs = 4 * 16 * 32 * 32 * 8
    assert temporary(jax.nn.relu) - temporary(ops.relu) > 0.9 * outputs
