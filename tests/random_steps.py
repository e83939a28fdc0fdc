"""Steps of random models: single layers and operations, as other people's code has them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def width(r):
    return int(r.integers(2, 7))


def pick(r, *choices):
    return choices[r.integers(len(choices))]


# -- Layers --------------------------------------------------------------------------------------


def dense(x, r):
    return nn.Dense(pick(r, width(r), np.int64(width(r))), use_bias=bool(r.integers(2)))(x)


def conv(x, r):
    size, strides, padding = pick(r, 1, 2, 3), pick(r, 1, 1, 2), pick(r, "SAME", "VALID", 1)
    dilation, bias = pick(r, 1, 1, 2), bool(r.integers(2))
    options = {"strides": strides, "padding": padding, "kernel_dilation": dilation}
    return nn.Conv(width(r), (size, size), **options, use_bias=bias)(x)


def depthwise(x, r):
    features = x.shape[-1] * pick(r, 1, 1, 2)
    return nn.Conv(features, (3, 3), feature_group_count=x.shape[-1])(x)


def grouped(x, r):
    return nn.Conv(2 * width(r), (1, 1), feature_group_count=2)(x)


def transposed(x, r):
    size, strides = pick(r, 1, 2, 3), pick(r, 1, 2)
    padding, flipped = pick(r, "SAME", "VALID", "CIRCULAR"), bool(r.integers(2))
    options = {"strides": (strides, strides), "padding": padding, "transpose_kernel": flipped}
    return nn.ConvTranspose(width(r), (size, size), **options)(x)


def local(x, r):
    return nn.ConvLocal(width(r), (2, 2))(x)


def heads(x, r):
    return nn.DenseGeneral((2, width(r)))(x).reshape(*x.shape[:-1], -1)


def einsum(x, r):
    features = width(r)
    return nn.Einsum((x.shape[-1], features), "...i,io->...o", use_bias=bool(r.integers(2)))(x)


def standardised(x, r):
    """A kernel that is not used as it stands."""
    features, wrong = width(r), bool(r.integers(2))

    class Standardised(nn.Module):
        features: int

        @nn.compact
        def __call__(self, x):
            init = nn.initializers.lecun_normal(dtype=jnp.float32)
            kernel = self.param("kernel", init, (x.shape[-1], self.features))
            kernel = kernel - kernel.mean(axis=0) if wrong else jnp.tanh(kernel)
            return x @ kernel

    return Standardised(features, name=f"standardised_{r.integers(10**9)}")(x)


def weight_norm(x, r):
    return nn.WeightNorm(nn.Dense(width(r)))(x)


class Methods(nn.Module):
    """Two layers that several methods share."""

    width: int

    def setup(self):
        self.inner = nn.Dense(self.width)
        self.outer = nn.Dense(self.width)

    def encode(self, x):
        return nn.relu(self.inner(x))

    def decode(self, x):
        return self.outer(self.encode(x)) + self.outer(x)


def shared(x, r):
    if r.integers(2):
        layer = nn.Dense(x.shape[-1])
        return layer(nn.relu(layer(x)))
    inner = width(r)
    module = Methods(inner)
    return module.decode(nn.Dense(inner)(x)) + module.encode(nn.Dense(inner)(x))


def looped(x, r):
    """The layers of a loop, as `nn.scan` makes them."""
    init, features = nn.initializers.lecun_normal(dtype=jnp.float32), width(r)
    x = nn.Dense(features)(x)
    kernels = nn.Module.param(
        nn.module._context.module_stack[-1],
        f"loop_{r.integers(10**9)}",
        init,
        (2, features, features),
    )
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, kernels)[0]


# -- Normalisation -------------------------------------------------------------------------------


def batch_norm(x, r):
    scale, shift = bool(r.integers(2)), bool(r.integers(2))
    return nn.BatchNorm(True, use_scale=scale, use_bias=shift)(x)


def layer_norm(x, r):
    return nn.LayerNorm()(x)


def act_norm(x, r):
    """A scale that divides, and one that multiplies."""
    divides, softened = bool(r.integers(2)), bool(r.integers(2))

    class ActNorm(nn.Module):
        @nn.compact
        def __call__(self, x):
            scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
            shift = self.param("shift", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
            scale = jnp.exp(scale) if softened else scale
            return x / scale + shift if divides else (x - shift) * scale

    return ActNorm(name=f"act_norm_{r.integers(10**9)}")(x)


def own_statistics(x, r):
    """Of the examples and pixels, with an epsilon, without one, and with one in another place."""
    axes, kind = tuple(range(x.ndim - 1)), r.integers(5)
    mean, std = x.mean(axes, keepdims=True), x.std(axes, keepdims=True)
    if kind == 0:
        return (x - mean) / (std + 1e-3)
    if kind == 1:
        return (x - mean) / std
    if kind == 2:
        return (x - mean) * jax.lax.rsqrt(std**2 + 1e-3)
    if kind == 3:
        return (x - mean) * jnp.reciprocal(std)
    return jnp.where(std > 0, (x - mean) / std, 0)


def quantised(x, r):
    """Learned step size: a step for each channel, or one for all."""
    shape = pick(r, (), (x.shape[-1],))

    class Quantised(nn.Module):
        @nn.compact
        def __call__(self, x):
            step = self.param("step", nn.initializers.ones, shape, jnp.float32)
            return jnp.round(x / step) * step

    return Quantised(name=f"quantised_{r.integers(10**9)}")(x)


# -- Operations ----------------------------------------------------------------------------------


def activation(x, r):
    return pick(
        r, *(nn.relu, nn.gelu, nn.tanh, nn.silu, jnp.abs, jnp.square, nn.leaky_relu),
        *(nn.sigmoid, nn.softplus, lambda x: jnp.clip(x, -1, 1), lambda x: jnp.where(x > 0, x, 1)),
    )(x)  # fmt: skip


def gate(x, r):
    kind, inner = r.integers(4), width(r)
    if kind == 0:
        a, b = jnp.split(nn.Dense(2 * inner)(x), 2, axis=-1)
        return a * nn.sigmoid(b)
    if kind == 1:
        squeezed = x.mean(axis=tuple(range(1, x.ndim - 1)), keepdims=True)
        return x * nn.sigmoid(nn.Dense(x.shape[-1])(nn.relu(nn.Dense(inner)(squeezed))))
    if kind == 2:
        return x * nn.softmax(x, axis=-1)
    return x * nn.sigmoid(nn.Dense(1)(x))


def join(x, r):
    """Concatenation: with constants, one channel of something else, itself, another layer."""
    kind, number, features = r.integers(8), pick(r, 0.0, 0.0, 1.0, 0.5), width(r)
    one = (*x.shape[:-1], 1)
    others = [
        lambda: jnp.full((*x.shape[:-1], 2), number),
        lambda: jnp.full(one, number),
        lambda: x.sum(axis=-1, keepdims=True),
        lambda: nn.Dense(1)(x),
        lambda: jnp.broadcast_to(jnp.linspace(0, 1, x.shape[-2])[:, None], one),
        lambda: -x,
        lambda: nn.relu(nn.Dense(features)(x)),
        lambda: jnp.zeros_like(x),
    ]  # fmt: skip
    pair = [x, others[kind]()]
    return jnp.concatenate(pair[:: pick(r, 1, -1)], axis=-1)


def resize(x, r):
    if x.ndim < 4:
        return x
    shape = (x.shape[0], x.shape[1] * 2, x.shape[2] + 1, x.shape[3])
    kind = r.integers(4)
    if kind == 0:
        return jnp.repeat(x, 2, axis=1)
    return jax.image.resize(x, shape, pick(r, "nearest", "nearest", "bilinear"))


def repeat(x, r):
    kind, number = r.integers(5), pick(r, 2, 3)
    if kind == 0:
        return jnp.tile(x, (*(1,) * (x.ndim - 1), number))
    if kind == 1:
        return jnp.repeat(x, number, axis=-1)
    if kind == 2:
        return jnp.tile(x, (1, number, *(1,) * (x.ndim - 2))) if x.ndim > 2 else x
    if kind == 3:
        return jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], number, x.shape[-1])).max(axis=-2)
    return jnp.broadcast_to(x[..., :1], x.shape) + x


def stack(x, r):
    kind, axis = r.integers(3), pick(r, -1, -2)
    both = jnp.stack([x, nn.relu(-x)], axis=axis)
    if kind == 0:
        return both.max(axis=axis)
    if kind == 1:
        return both.reshape(*x.shape[:-1], -1)
    return both.sum(axis=axis) * both.mean(axis=axis)


def split(x, r):
    kind = r.integers(6)
    a, b = (x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :])
    if kind == 0:
        return jnp.concatenate([b, a], axis=-1)
    if kind == 1:
        return nn.relu(a)
    if kind == 2:
        return x[..., ::2]
    if kind == 3:
        return jnp.flip(x, axis=-1)
    if kind == 4:
        a, b = jnp.split(x, 2, axis=-1)
        return a + b
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [pick(r, (0, 2), (1, 0))])


def skip(x, r):
    inner, kind = width(r), r.integers(3)
    if kind == 0:
        return x + nn.Dense(x.shape[-1])(nn.relu(nn.Dense(inner)(x)))
    if kind == 1:
        x = nn.Dense(inner)(x)
        return nn.relu(x + nn.Dense(inner)(nn.relu(x)))
    y = nn.Dense(inner)(x)
    return y + (x if x.shape[-1] == inner else nn.Dense(inner)(x))


def counting(x, r):
    """Code that uses its number of channels, most of it through an array."""
    count, kind = x.shape[-1], r.integers(10)
    uses = [
        lambda: x * count,
        lambda: x * jnp.full_like(x, count),
        lambda: x * jnp.broadcast_to(jnp.asarray(count, x.dtype), x.shape),
        lambda: x / jnp.ones_like(x).sum(axis=-1, keepdims=True),
        lambda: x * (jnp.ones(count) @ jnp.ones(count)),
        lambda: x + x.mean(axis=-1, keepdims=True),
        lambda: x * jnp.arange(count).max(),
        lambda: x**count,
        lambda: x * jnp.full((3,), count, x.dtype).sum(),
        lambda: x * jnp.cumsum(jnp.ones(count))[-1],
    ]
    return uses[kind]()


def mix(x, r):
    kind = r.integers(7)
    if kind == 0:
        return jnp.sort(x, axis=-1)
    if kind == 1:
        return jnp.cumsum(x, axis=pick(r, -1, 1))
    if kind == 2:
        return jnp.einsum("...c,...d->...cd", x, x[..., :2]).reshape(*x.shape[:-1], -1)
    if kind == 3:
        return x * jnp.einsum("...c,...c->...", x, x)[..., None]
    if kind == 4:
        return jnp.swapaxes(nn.Dense(width(r))(jnp.swapaxes(x, 1, -1)), 1, -1)
    if kind == 5:
        return x.reshape(x.shape[0], -1)
    return x / (1e-3 + jnp.linalg.norm(x, axis=pick(r, -1, 0), keepdims=True))


def pool(x, r):
    if x.ndim < 4:
        return x
    kind, padding = pick(r, nn.avg_pool, nn.max_pool), pick(r, "SAME", "VALID")
    return kind(x, (2, 2), pick(r, (1, 1), (2, 2)), padding)


PLAIN = [dense, dense, conv, conv, conv, skip, transposed]
LAYERS = [
    *(*PLAIN, depthwise, depthwise, grouped, transposed, local, heads, einsum, standardised),
    *(weight_norm, shared, shared, gate, looped),
]
OTHERS = [
    *(batch_norm, batch_norm, layer_norm, act_norm, own_statistics, quantised, activation),
    *(activation, gate, join, join, resize, repeat, stack, split, counting, mix, pool),
]
IMAGES = {conv, depthwise, grouped, transposed, local}
