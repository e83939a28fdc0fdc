"""Slow and obvious computations to compare the library with, and small networks to do so on."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import ntksap_jax as nts
from ntksap_jax import masks
from ntksap_jax.types import Network


class SmoothMLP(nn.Module):
    """Small enough for a dense Jacobian; smooth, so that derivatives are what they seem."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(jnp.tanh(nn.Dense(6)(x)))


class ReluMLP(nn.Module):
    """Dense layers with ReLUs between them."""

    features: Sequence[int] = (6,)
    outputs: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in self.features:
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(self.outputs)(x)


class ConvBN(nn.Module):
    """A small convolutional network with batch normalisation."""

    features: Sequence[int] = (4,)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for features in self.features:
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3)(x.mean(axis=(1, 2)))


@functools.cache  # Made once: its functions are compiled once.
def smooth_mlp() -> Network:
    return nts.linen(SmoothMLP(), (4,))


@functools.cache
def conv_bn(*features: int) -> Network:
    return nts.linen(ConvBN(features or (4,)), (6, 6, 2), train=False)


def flat(tree: Any) -> np.ndarray:
    """All entries of a pytree in one vector."""
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def random_mask(key: jax.Array, params: Any, density: float = 0.7) -> Any:
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return masks.map_prunable(
        lambda m: jnp.asarray(rng.random(m.shape) < density), masks.create(params)
    )


def dense_trace(network: Network, params: Any, relaxed: Any, inputs: Any) -> jax.Array:
    """tr Θ(m) = ‖J(θ⊙m) diag(m)‖²_F over the prunable weights, through the dense Jacobian."""

    def outputs(weights: Any) -> jax.Array:
        merged = jax.tree.map(
            lambda w, p: p if w is None else w, weights, params, is_leaf=lambda leaf: leaf is None
        )
        return network.apply(merged, inputs)

    masked = masks.map_prunable(lambda m, p: m * p, relaxed, params)
    jacobian = jax.jacfwd(outputs)(masked)
    return sum(
        jnp.sum((j * m) ** 2)
        for j, m in zip(jax.tree.leaves(jacobian), jax.tree.leaves(relaxed), strict=True)
    )


@contextlib.contextmanager
def count_compilations() -> Iterator[list[Any]]:
    """Collects what XLA compiles inside of the block."""
    compiled: list[Any] = []
    inside = True  # jax 0.7.2 can add listeners and not take them away

    def listen(event: str, duration: float, **kwargs: Any) -> None:
        if inside and event == "/jax/core/compile/backend_compile_duration":
            compiled.append(kwargs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        inside = False
