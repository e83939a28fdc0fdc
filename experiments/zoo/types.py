"""What the glue of a model makes, and the data that models are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import ntksap_jax as nts

BATCH = 8
CLASSES = 10
VOCABULARY = 50

LossFn = Callable[[Any, Any], jax.Array]
"""`loss_fn(outputs, labels) -> losses`, one for each example."""


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the cross-entropy of each example, the mean over positions if there are several."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.reshape(len(labels), -1).mean(1)


def squared_error(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean squared error of each example."""
    return jnp.square(outputs - labels).reshape(len(labels), -1).mean(1)


class Entry(NamedTuple):
    """A model that is ready to be pruned.

    Attributes:
        network: the model as pure functions.
        batch: inputs and labels.
        loss_fn: what it is trained by, and SNIP looks at.
        draw: how NTK-SAP draws inputs.
        include: patterns of what is prunable, where names do not tell.
        exclude: patterns of what is not.
        module: the linen module or nnx model that is shrunk; `None` for other frameworks, of which
            `network.apply` is.
        mode: the arguments that put the module in evaluation mode.
    """

    network: nts.types.Network
    batch: tuple[Any, Any]
    loss_fn: LossFn = cross_entropy
    draw: Any = "noise"
    include: str | None = None
    exclude: str | None = None
    module: nn.Module | nnx.Module | None = None
    mode: Mapping[str, Any] = {}


def labelled(*shape: int) -> tuple[jax.Array, jax.Array]:
    """Returns Gaussian inputs of this shape, and a class for each."""
    return jax.random.normal(jax.random.key(1), (BATCH, *shape)), jnp.arange(BATCH) % CLASSES


def tokens(key: jax.Array, count: int, length: int = 12) -> jax.Array:
    """Draws sequences of tokens."""
    return jax.random.randint(key, (count, length), 0, VOCABULARY)


def ones(key: jax.Array, count: int, length: int = 12) -> jax.Array:
    """Returns the attention mask of sequences without padding."""
    del key
    return jnp.ones((count, length), int)


def positions(key: jax.Array, count: int, length: int = 12) -> jax.Array:
    """Returns the number of each position."""
    del key
    return jnp.broadcast_to(jnp.arange(length), (count, length))
