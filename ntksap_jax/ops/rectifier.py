"""The rectifier, remembered by its output.

Backpropagation needs to know where a rectifier's input was positive. XLA reads that off the input,
whatever the program says, and so keeps the input beside the output, which the next operation needs
anyway: before maxima of slices both, until the backward pass comes by. Here it is read off the
output, and a primitive keeps XLA's CPU backend from knowing better. (The pools of our VGG no
longer need it: its score takes the same memory with `jax.nn.relu`.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def relu(inputs: jax.Array) -> jax.Array:
    """Returns max(x, 0): `jax.nn.relu`, in every derivative, with less memory on CPU.

    Args:
        inputs: an array of any shape.

    Returns:
        An array of the same shape and dtype. Its derivative at 0 is 0.

    >>> import jax, jax.numpy as jnp
    >>> relu(jnp.array([-1.0, 2.0])).tolist(), jax.grad(relu)(0.0).item()
    ([0.0, 2.0], 0.0)
    """
    return _relu(inputs)


def _rectified(inputs: jax.Array) -> jax.Array:
    return kept_p.bind(jnp.maximum(inputs, 0))


_rectified.__name__ = "relu"  # As `ntksap_jax.paths` knows activations of `jax.nn`.
_relu = jax.custom_jvp(jax.jit(_rectified))
_relu.defjvps(lambda g, output, x: lax.select(output > 0, g, lax.full_like(g, 0)))

kept_p = Primitive("kept")
"""The identity, which the simplifications of XLA's CPU backend do not see through."""

kept_p.def_impl(lambda x: x)
kept_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(kept_p, mlir.lower_fun(lambda x: x, multiple_results=False))
mlir.register_lowering(
    kept_p, mlir.lower_fun(lax.optimization_barrier, multiple_results=False), platform="cpu"
)
ad.deflinear2(kept_p, lambda cotangent, x: [cotangent])
batching.defvectorized(kept_p)
