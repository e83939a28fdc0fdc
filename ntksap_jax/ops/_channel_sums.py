"""Sums over all axes but the last, and their transposes: what batch normalisation consists of.

XLA's CPU backend sums the products of two activations, channel by channel, one number after the
other; batch normalisation takes two such sums forward and two backward, a fifth of the time of
training a ResNet-20. A matrix product with ones takes half of that or less. So that derivatives are
made of it as well, the sum is a primitive, and the broadcast that is its transpose is another.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ntksap_jax.ops._types import needs_no_sharding_rule


def channel_sum(inputs: jax.Array) -> jax.Array:
    """Sums over all axes but the last: `jnp.sum` to rounding, in every derivative.

    Args:
        inputs: (..., C), floating point.

    Returns:
        (C,), of the same dtype.

    >>> import jax.numpy as jnp
    >>> channel_sum(jnp.ones((2, 3, 3, 4))).tolist()
    [18.0, 18.0, 18.0, 18.0]
    """
    if not needs_no_sharding_rule(inputs):
        return _plain_sum(inputs)
    return sum_p.bind(inputs)


def channel_broadcast(values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeats a value for each channel along all axes but the last: the transpose of `channel_sum`.

    Args:
        values: (C,), floating point.
        shape: (..., C).

    Returns:
        An array of that shape.

    >>> import jax.numpy as jnp
    >>> channel_broadcast(jnp.array([1.0, 2.0]), (2, 2)).tolist()
    [[1.0, 2.0], [1.0, 2.0]]
    """
    if not needs_no_sharding_rule(values):
        return _plain_broadcast(values, shape=shape)
    return broadcast_p.bind(values, shape=shape)


def _plain_sum(inputs: jax.Array) -> jax.Array:
    return jnp.sum(inputs, axis=tuple(range(inputs.ndim - 1)))


def _plain_broadcast(values: jax.Array, *, shape: tuple[int, ...]) -> jax.Array:
    return lax.broadcast_in_dim(values, shape, (len(shape) - 1,))


def _sum_on_cpu(inputs: jax.Array) -> jax.Array:
    """By a product with rows as long as possible: the examples are added up, then the pixels."""
    if inputs.ndim < 3 or inputs.dtype not in (jnp.float32, jnp.float64):
        return _plain_sum(inputs)
    rows = inputs.reshape(inputs.shape[0], math.prod(inputs.shape[1:]))
    total = jnp.ones(rows.shape[0], rows.dtype) @ rows
    return _plain_sum(total.reshape(inputs.shape[1:]))


sum_p = Primitive("channel_sum")
broadcast_p = Primitive("channel_broadcast")

sum_p.def_impl(jax.jit(sum_p.bind))
sum_p.def_abstract_eval(lambda x: jax.core.ShapedArray(x.shape[-1:], x.dtype))
mlir.register_lowering(sum_p, mlir.lower_fun(_plain_sum, multiple_results=False))
mlir.register_lowering(sum_p, mlir.lower_fun(_sum_on_cpu, multiple_results=False), platform="cpu")
ad.deflinear2(sum_p, lambda cotangent, x: [broadcast_p.bind(cotangent, shape=x.aval.shape)])

broadcast_p.def_impl(jax.jit(broadcast_p.bind, static_argnames="shape"))
broadcast_p.def_abstract_eval(lambda x, *, shape: jax.core.ShapedArray(shape, x.dtype))
mlir.register_lowering(broadcast_p, mlir.lower_fun(_plain_broadcast, multiple_results=False))
ad.deflinear2(broadcast_p, lambda cotangent, x, *, shape: [sum_p.bind(cotangent)])


def _batch_sum(operands: Any, axes: Any) -> tuple[jax.Array, int]:
    [inputs], [axis] = operands, axes
    inputs = jnp.moveaxis(inputs, axis, 0)
    return jnp.sum(inputs, axis=tuple(range(1, inputs.ndim - 1))), 0


def _batch_broadcast(operands: Any, axes: Any, *, shape: tuple[int, ...]) -> tuple[jax.Array, int]:
    [values], [axis] = operands, axes
    values = jnp.moveaxis(values, axis, 0)
    return lax.broadcast_in_dim(values, (len(values), *shape), (0, len(shape))), 0


batching.primitive_batchers[sum_p] = _batch_sum
batching.primitive_batchers[broadcast_p] = _batch_broadcast
