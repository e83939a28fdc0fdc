"""Steps of random models: what people put together from several layers and operations."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from random_steps import pick, width


def places(x):
    """The axes of pixels."""
    return tuple(range(1, x.ndim - 1))


def towers(x, r):
    """One tower for two views of the inputs."""
    kind, inner, last = r.integers(4), width(r), width(r)
    layers = [nn.Dense(inner), nn.relu, nn.Dense(last)]

    def tower(x):
        return functools.reduce(lambda x, layer: layer(x), layers, x)

    one, other = tower(x), tower(jnp.flip(x, axis=1) if kind % 2 else -x)
    if kind == 0:
        return one * other
    if kind == 1:
        return jnp.concatenate([one, other, jnp.abs(one - other)], axis=-1)
    if kind == 2:
        return one + other
    return jnp.stack([one, other]).max(axis=0)


def squeeze_excite(x, r):
    inner, squeeze = width(r), pick(r, jnp.mean, jnp.max)
    weights = squeeze(x, axis=places(x))
    weights = nn.Dense(x.shape[-1])(nn.relu(nn.Dense(inner)(weights)))
    weights = weights.reshape(len(x), *(1,) * len(places(x)), -1)
    return x * pick(r, nn.sigmoid, nn.hard_sigmoid, nn.tanh)(weights)


def shuffle(x, r):
    """Of channels, as ShuffleNet does, and its two halves of them."""
    x = nn.Dense(2 * width(r))(x)
    if r.integers(2):
        a, b = jnp.split(x, 2, axis=-1)
        x = jnp.concatenate([a, nn.relu(nn.Dense(b.shape[-1])(b))], axis=-1)
    groups = pick(r, (2, -1), (-1, 2))
    return x.reshape(*x.shape[:-1], *groups).swapaxes(-1, -2).reshape(x.shape)


def depth_to_space(x, r):
    if x.ndim < 4:
        return x
    n, h, w, _ = x.shape
    features = width(r)
    if r.integers(2):
        x = nn.Conv(4 * features, (1, 1))(x).reshape(n, h, w, *pick(r, (2, 2, -1), (-1, 2, 2)))
        order = (0, 1, 3, 2, 4, 5) if x.shape[3] == 2 else (0, 1, 4, 2, 5, 3)
        return x.transpose(order).reshape(n, 2 * h, 2 * w, -1)
    if h % 2 or w % 2:
        return x
    x = x.reshape(n, h // 2, 2, w // 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return nn.Dense(features)(x.reshape(n, h // 2, w // 2, -1))


def border(x, r):
    mode = pick(r, "reflect", "edge", "wrap", "symmetric", "constant", "mean")
    own = (1, 1) if r.integers(4) == 0 else (0, 0)
    sides = (1, 1) if min(x.shape[1:-1], default=0) > 1 else (0, 0)
    return jnp.pad(x, [(0, 0), *(sides for _ in places(x)), own], mode=mode)


def einsums(x, r):
    kind, features = r.integers(7), width(r)
    kernel = nn.Module.param(
        nn.module._context.module_stack[-1],
        f"kernel_{r.integers(10**9)}",
        nn.initializers.lecun_normal(dtype=jnp.float32),
        (features, x.shape[-1]) if kind < 2 else (x.shape[-1], features),
    )
    forms = ["...c,dc->...d", "...c,dc->d...", "...c,cd->...d", "...c,cd,...c->...d"]
    forms += ["...c,cd->...dc", "...c,cd->...", "...c,cd->...c"]
    operands = [x, kernel, x] if kind == 3 else [x, kernel]
    y = jnp.einsum(forms[kind], *operands)
    if kind == 1:
        return jnp.moveaxis(y, 0, -1)
    if kind == 4:
        return y.reshape(*x.shape[:-1], -1)
    return y[..., None] if kind == 5 else y


def gated_units(x, r):
    """The outputs of one layer, or of two, as value and gate."""
    kind, inner, act = r.integers(5), width(r), pick(r, nn.sigmoid, nn.silu, nn.gelu, nn.relu)
    if kind == 0:
        return nn.glu(nn.Dense(2 * inner)(x))
    if kind == 1:
        both = nn.Dense(2 * inner)(x)
        return nn.Dense(width(r))(both[..., ::2] * act(both[..., 1::2]))
    if kind == 2:
        return nn.Dense(width(r))(nn.Dense(inner)(x) * act(nn.Dense(inner)(x)))
    if kind == 3:
        both = nn.Dense(2 * inner)(x).reshape(*x.shape[:-1], *pick(r, (2, inner), (inner, 2)))
        axis = -1 if both.shape[-1] == 2 else -2
        return both.take(0, axis=axis) * act(both.take(1, axis=axis))
    value, *gates = jnp.split(nn.DenseGeneral((3, inner))(x), 3, axis=-2)
    return (value * act(gates[0]) + gates[1]).squeeze(-2)


def branches(x, r):
    """As in Inception: layers of several sizes and a pool, side by side."""
    if x.ndim < 4:
        return jnp.concatenate([nn.Dense(width(r))(x), nn.tanh(nn.Dense(width(r))(x)), x], axis=-1)
    parts = [
        nn.Conv(width(r), (1, 1))(x),
        nn.relu(nn.Conv(width(r), (3, 3))(nn.relu(nn.Conv(width(r), (1, 1))(x)))),
        nn.Conv(width(r), (1, 1))(pick(r, nn.max_pool, nn.avg_pool)(x, (3, 3), (1, 1), "SAME")),
        jnp.broadcast_to(x.mean(axis=(1, 2), keepdims=True), x.shape),
        nn.max_pool(x, (3, 3), (1, 1), "SAME"),
    ]
    return jnp.concatenate([parts[i] for i in r.permutation(5)[: r.integers(2, 5)]], axis=-1)


def scanned(x, r):
    """`nn.scan` over layers, `nn.vmap` over an ensemble, `nn.remat`."""
    features, kind = width(r), r.integers(3)

    class Block(nn.Module):
        features: int

        @nn.compact
        def __call__(self, x, _=None):
            y = nn.Dense(self.features)(nn.relu(nn.Dense(self.features + 1)(x)))
            return (x + y, None) if kind == 0 else y

    name = f"block_{r.integers(10**9)}"
    options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    if kind == 0:
        x = nn.Dense(features)(x)
        return nn.scan(Block, length=2, **options)(features, name=name)(x, None)[0]
    if kind == 1:
        lifted = nn.vmap(Block, in_axes=None, axis_size=2, **options)
        return lifted(features, name=name)(x).sum(axis=0)
    return nn.remat(Block)(features, name=name)(x)


def norms(x, r):
    scale, shift, kind = bool(r.integers(2)), bool(r.integers(2)), r.integers(6)
    if kind == 0:
        return nn.RMSNorm(use_scale=scale)(x)
    if kind == 1:
        return nn.LayerNorm(use_scale=scale, use_bias=shift, reduction_axes=pick(r, -1, (1, -1)))(x)
    if kind == 2:
        x = nn.Dense(2 * width(r))(x)
        return nn.GroupNorm(pick(r, 2, x.shape[-1]), use_scale=scale, use_bias=shift)(x)
    if kind == 3:
        return nn.GroupNorm(None, group_size=1, use_scale=scale, use_bias=shift)(x)
    if kind == 4:
        return nn.InstanceNorm(use_scale=scale, use_bias=shift)(x) if x.ndim > 2 else x
    return x / jnp.sqrt(jnp.square(x).mean(axis=pick(r, -1, 1), keepdims=True) + 1e-3)


def choices(x, r):
    """Of the largest channels, and other things that depend on all of them."""
    kind, last = r.integers(12), x.shape[-1]
    if kind == 0:
        return x * jax.nn.one_hot(x.argmax(axis=-1), last, dtype=x.dtype)
    if kind == 1:
        return x + x.argmax(axis=-1, keepdims=True)
    if kind == 2:
        return jax.lax.top_k(x, min(2, last))[0]
    if kind == 3:
        return jnp.take_along_axis(x, jnp.argsort(x, axis=-1), axis=-1)
    if kind == 4:
        return jnp.where(x == x.max(axis=-1, keepdims=True), x, 0)
    if kind == 5:
        return jnp.fft.fft(x, axis=pick(r, -1, 1)).real
    if kind == 6:
        return jnp.cumsum(x, axis=-1) / (1 + jnp.arange(last))
    if kind == 7:
        return x * nn.softmax(x, axis=pick(r, -1, 1, 1))
    if kind == 8:
        return jnp.roll(x, 1, axis=pick(r, -1, 1))
    if kind == 9:
        return x[..., r.permutation(last)]
    if kind == 10:
        return jnp.where(x > jnp.median(x, axis=-1, keepdims=True), x, 0)
    return nn.log_softmax(x, axis=-1)


def mixer(x, r):
    """Layers across pixels between layers across channels."""
    bias, inner = bool(r.integers(2)), width(r)
    tokens = x.reshape(len(x), -1, x.shape[-1])
    y = nn.relu(nn.Dense(inner, use_bias=bias)(tokens.swapaxes(1, 2)))
    y = nn.Dense(tokens.shape[1], use_bias=bias)(y).swapaxes(1, 2)
    return x + y.reshape(x.shape)


def attention(x, r):
    tokens = x.reshape(len(x), -1, x.shape[-1])
    features = 2 * width(r)
    if r.integers(2):
        options = {"qkv_features": features, "out_features": width(r)}
        return nn.MultiHeadDotProductAttention(2, **options)(tokens)
    q, k, v = (nn.Dense(features)(tokens) for _ in range(3))
    weights = nn.softmax(jnp.einsum("bic,bjc->bij", q, k) / features**0.5, axis=-1)
    return nn.Dense(width(r))(jnp.einsum("bij,bjc->bic", weights, v))


def divided(x, r):
    """By what removal may make 0, in ways that no rule knows."""
    kind, axes = r.integers(8), places(x) or (0,)
    x = pick(r, lambda x: x, nn.relu, nn.silu)(x)
    if kind == 0:
        return x / nn.sigmoid(x).std(axes, keepdims=True)
    if kind == 1:
        return x / jnp.sqrt(nn.sigmoid(x).var(axes, keepdims=True) + 1e-6)
    if kind == 2:
        return x / (jnp.max(x, axes, keepdims=True) - jnp.min(x, axes, keepdims=True))
    if kind == 3:
        return x / (jnp.exp(x) - 1)
    if kind == 4:
        return x / (jnp.cos(x) - jnp.mean(jnp.cos(x), axes, keepdims=True))
    if kind == 5:
        return x * jnp.log(jnp.abs(x))
    if kind == 6:
        return x * jnp.sum(jnp.abs(x), axes, keepdims=True) ** -0.5
    return nn.relu(x) ** 0.5 * jnp.sign(x)


def learned(x, r):
    """Parameters that no layer has: scales, positions, slopes, a token more."""
    kind, last = r.integers(6), x.shape[-1]
    module = nn.module._context.module_stack[-1]

    def param(name, shape):
        init = nn.initializers.normal(dtype=jnp.float32)
        return nn.Module.param(module, f"{name}_{r.integers(10**9)}", init, shape)

    if kind == 0:
        return x * param("gamma", (last,)) + x
    if kind == 1:
        return x + param("position", (1, *x.shape[1:]))
    if kind == 2:
        return nn.PReLU()(x)
    if kind == 3:
        token = param("token", (1, *(1,) * len(places(x)), last))
        if x.ndim != 3:
            return x + token
        return jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, last)), x], axis=1)
    if kind == 4:
        return jnp.where(x > param("threshold", (last,)), x, param("other", (last,)))
    return x * jnp.exp(param("log_scale", (1, last))[0])


def maxout(x, r):
    y = nn.Dense(2 * width(r))(x)
    return y.reshape(*x.shape[:-1], *pick(r, (-1, 2), (2, -1))).max(axis=pick(r, -1, -2))


def unread(x, r):
    """What is computed, perhaps kept, and not read."""
    module = nn.module._context.module_stack[-1]
    number = pick(r, jnp.sum, jnp.mean, jnp.linalg.norm)(pick(r, nn.sigmoid, nn.relu)(x))
    if r.integers(2):
        module.sow("intermediates", f"seen_{r.integers(10**9)}", number)
    return x


def switched(x, r):
    """Branches and loops of JAX."""
    kind = r.integers(4)
    if kind == 0:
        return jax.lax.cond(x.sum() > 0, nn.relu, jnp.negative, x)
    if kind == 1:
        return jax.lax.fori_loop(0, 2, lambda i, x: jnp.tanh(x), x)
    if kind == 2:
        return jax.checkpoint(lambda x: nn.silu(x) * x)(x)
    return jax.vmap(lambda x: nn.relu(x) + x.mean(axis=0))(x)


def channels_first(x, r):
    """A product over an axis that is not the last."""
    y = jnp.moveaxis(x, -1, 1)
    y = nn.relu(y - y.mean(axis=-1, keepdims=True) if r.integers(2) else y)
    return nn.DenseGeneral(width(r), axis=1)(y)


BLOCKS = [
    *(towers, squeeze_excite, squeeze_excite, shuffle, depth_to_space, einsums, gated_units),
    *(gated_units, branches, branches, scanned, mixer, attention, maxout, channels_first),
]
BETWEEN = [border, norms, norms, choices, choices, divided, learned, learned, unread, switched]
