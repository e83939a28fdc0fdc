"""The few layers and checks that all the networks share.

Initialisation and normalisation follow the code of NTK-SAP: Kaiming-normal kernels (fan-in, gain
√2) in every convolution and dense layer, the classifier included, biases zero, BatchNorm with
torch's momentum 0.1 (flax's 0.9) and epsilon 1e-5.
"""

import functools
import itertools
import math
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ntksap_jax import _draws, ops


def kaiming_normal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Normal numbers of variance 2 / fan-in; the last axis of `shape` is the output.

    The numbers are those of `variance_scaling(2.0, "fan_in", "normal")`; `he_normal` would cut the
    tails at two σ. `_draws.normal` draws a vector because XLA's CPU compiler takes five to ten
    times as long over a draw of four axes: seconds for each kernel of a network.
    """
    return math.sqrt(2 / math.prod(shape[:-1])) * _draws.normal(key, shape, dtype)


def conv(features: int, size: int, *, stride: int = 1, name: str) -> nn.Conv:
    """A `size`×`size` convolution without bias: BatchNorm, which has one, always follows.

    The padding is symmetric, as in torch; `padding="SAME"` is not where the stride is 2.
    """
    return nn.Conv(
        features,
        kernel_size=(size, size),
        strides=(stride, stride),
        padding=[(size // 2, size // 2)] * 2,
        use_bias=False,
        kernel_init=kaiming_normal,
        conv_general_dilated=ops.conv_general_dilated,
        name=name,
    )


class TrainingBatchNorm(nn.BatchNorm):
    """BatchNorm by the batch's statistics: Flax's arithmetic to rounding, with faster sums on CPU.

    It is for images (N, H, W, C). y = a·x + (b - a·mean), with a = scale / √(var + ε), takes one
    pass over the activations and two sums over them forward, and as many backward.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """Normalises, and moves the running averages on."""
        features = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, features)
        bias = self.param("bias", self.bias_init, features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)

        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        count = x.size // x.shape[-1]
        mean = ops.channel_sum(x) / count
        var = ops.channel_sum(x * x) / count - mean**2
        var = jnp.where(var < 0, 0, var)  # not `maximum`, see `_larger`
        if not self.is_initializing():
            for running, new in ((running_mean, mean), (running_var, var)):
                running.value = self.momentum * running.value + (1 - self.momentum) * new
        gain = scale * jax.lax.rsqrt(var + self.epsilon)
        shift = bias - mean * gain
        return x * ops.channel_broadcast(gain, x.shape) + ops.channel_broadcast(shift, x.shape)


def batch_norm(*, train: bool, name: str) -> nn.BatchNorm:
    """BatchNorm by the batch's statistics in training, by the running ones otherwise."""
    kind = TrainingBatchNorm if train else nn.BatchNorm
    return kind(use_running_average=not train, momentum=0.9, epsilon=1e-5, name=name)


def dense(features: int, *, name: str) -> nn.Dense:
    """A dense layer with bias."""
    return nn.Dense(features, kernel_init=kaiming_normal, name=name)


def max_pool(x: jax.Array, size: int, *, stride: int, padding: int = 0) -> jax.Array:
    """Maximum over `size`×`size` windows, one tap after the other.

    The gradient of `nn.max_pool`, a scatter, takes XLA on CPU ten times as long and more.
    """
    if size == stride and not padding:
        return _largest_of_blocks(x, size)
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    x = jnp.pad(x, sides, constant_values=-jnp.inf) if padding else x
    return functools.reduce(_larger, _taps(x, size, stride))


def _taps(x: jax.Array, size: int, stride: int) -> Iterator[jax.Array]:
    """Yields the first pixel of every window, then the second, and so on."""
    rows, columns = (length - size + 1 for length in x.shape[1:3])
    n, _, _, channels = x.shape
    for a, b in itertools.product(range(size), repeat=2):
        # x[:, a::stride] would be a gather in older versions of JAX, which is slow and cannot be
        # traced for coupled channels.
        end = (n, a + rows, b + columns, channels)
        yield jax.lax.slice(x, (0, a, b, 0), end, (1, stride, stride, 1))


@jax.custom_jvp
def _larger(x: jax.Array, y: jax.Array) -> jax.Array:
    """`jnp.maximum`, whose derivative does not ask which of the two equals the result.

    XLA computes cheap operations again where their results are used, and may round otherwise there:
    then neither does, and the derivative is lost. (A quarter of a VGG-16's, by its norm.)
    """
    return jnp.maximum(x, y)


_larger.defjvps(
    lambda g, larger, x, y: jnp.where(x >= y, g, 0), lambda g, larger, x, y: jnp.where(x >= y, 0, g)
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _largest_of_blocks(x: jax.Array, size: int) -> jax.Array:
    """Maximum over windows that do not overlap, with a derivative that backpropagates in one pass.

    A pixel gets that of its window if it is the largest there, the first of equal ones. Tap by tap,
    by `_larger`, backpropagation makes an array like `x` for each tap.
    """
    return functools.reduce(jnp.maximum, _taps(x, size, size))


@_largest_of_blocks.defjvp
def _(size: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    (x,), (tangent,) = primals, tangents
    largest, *others = _taps(x, size, size)
    n, height, width, channels = largest.shape
    winner = jnp.zeros_like(largest, jnp.int16)
    for i, other in enumerate(others, start=1):  # the comparisons of `_larger`, for its reason
        winner = jnp.where(largest >= other, winner, jnp.int16(i))
        largest = jnp.maximum(largest, other)
    # One axis at a time: an array whose batch lies on several devices cannot be split at two.
    blocks = jax.lax.slice(tangent, (0, 0, 0, 0), (n, height * size, width * size, channels))
    blocks = blocks.reshape(n, height, size, width * size, channels)
    blocks = blocks.reshape(n, height, size, width, size, channels)
    tap = jnp.arange(size**2, dtype=jnp.int16).reshape(1, 1, size, 1, size, 1)
    won = jnp.where(winner[:, :, None, :, None] == tap, blocks, 0)
    return _largest_of_blocks(x, size), won.sum((2, 4))


def global_average_pool(x: jax.Array) -> jax.Array:
    """Mean over the pixels: (N, H, W, C) to (N, C)."""
    return x.mean(axis=(1, 2))


def check_images(x: jax.Array) -> None:
    """Raises ValueError unless `x` is a batch of images with at least one pixel, (N, H, W, C)."""
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(
            f"inputs: got shape {x.shape}, expected a batch of images (N, H, W, C)"
            + (". Add the batch axis with x[None]." if x.ndim == 3 else ".")
        )


def check_sizes(**sizes: int | Sequence[int]) -> None:
    """Raises ValueError, naming the argument, unless all sizes are integers of at least 1."""
    for name, value in sizes.items():
        values = value if isinstance(value, Sequence) else [value]
        if not all(isinstance(v, numbers.Integral) and v >= 1 for v in values):
            expected = "a tuple of integers" if isinstance(value, Sequence) else "an integer"
            raise ValueError(f"{name}: got {value!r}, expected {expected} of at least 1.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError, listing the choices, unless `value` is one of them."""
    if value not in choices:
        expected = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: got {value!r}, expected {expected}.")
