"""Batch statistics, for both of Flax's module systems.

Batch normalisation is where a module is not a function of params and inputs alone. A score must
normalise with the statistics of its own batch and hold them constant under differentiation
(NTK-SAP, released code: statistics first, then evaluation mode; a derivative that flowed through
them would be the NTK of another function).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from ntksap_jax import masks, ops
from ntksap_jax._networks._checks import ModelError

Statistics = dict[str, Any]


def moments(
    x: jax.Array, axis: int | tuple[int, ...], *, constant: bool
) -> tuple[jax.Array, jax.Array, int]:
    """Returns what a BatchNorm normalises with, in float32 at least.

    Args:
        x: its inputs.
        axis: the axis or axes of its features, as it was told.
        constant: hold them constant under differentiation.

    Returns:
        Mean and biased variance for each feature, and the number of values that each is of.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if constant:
        x = jax.lax.stop_gradient(x)
    features = {i % x.ndim for i in (axis if isinstance(axis, tuple) else (axis,))}
    axes = tuple(i for i in range(x.ndim) if i not in features)
    count = math.prod(x.shape[i] for i in axes)
    if axes != tuple(range(x.ndim - 1)):
        return jnp.mean(x, axes), jnp.var(x, axes), count
    # By our sums, which are fast on CPU.
    mean = ops.channel_sum(x) / count
    centred = x - ops.channel_broadcast(mean, x.shape)
    return mean, ops.channel_sum(centred**2) / count, count


def unbiased_variance(var: jax.Array, count: int, name: str) -> jax.Array:
    """Returns the unbiased variance, for the biased one of `count` values.

    Args:
        var: the biased variance.
        count: number of values.
        name: path of the BatchNorm, for the message.

    Raises:
        ValueError: a single value.
    """
    if count == 1:
        raise ModelError(
            f"inputs: BatchNorm {name!r} sees a single value per feature, whose unbiased variance "
            "does not exist. Use a larger batch_size."
        )
    return var * (count / (count - 1))


def check_statistics(batch_stats: Any, expected: Any, *, source: str) -> None:
    """Raises a ValueError unless given running statistics fit the model.

    Args:
        batch_stats: as they were given.
        expected: those of the model, or their shapes.
        source: where to take them from, for the message.
    """
    wanted, given = (
        {path: jnp.shape(leaf) for path, leaf in masks.leaf_paths(tree).items()}
        for tree in (expected, batch_stats)
    )
    for path in wanted | given:
        if wanted.get(path) != given.get(path):
            raise ValueError(
                f"batch_stats: leaf {path!r} has shape {given.get(path)}, the model's has "
                f"{wanted.get(path)}. Pass {source}."
            )
