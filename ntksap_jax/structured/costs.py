"""What a network costs with fewer filters, by arithmetic alone."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ntksap_jax.structured.channels import Channels, is_removed, removed_channels
from ntksap_jax.structured.types import Keep


class Cost(NamedTuple):
    """What a network costs.

    Attributes:
        flops: floating-point operations for one example: 2 for each multiply-add of a kernel,
            of layers or not, as `ntksap_jax.flops` counts (for convolutional networks as TPP does).
        layer_params: entries of the kernels and biases of convolutions and dense layers (TPP's
            count of parameters, without normalisation).
        params: entries of all parameters.

    >>> import flax.linen as nn
    >>> from ntksap_jax.structured import trace
    >>> cost(trace(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)]), (4,)))
    Cost(flops=112, layer_params=67, params=67)
    """

    flops: int
    layer_params: int
    params: int


def cost(channels: Channels, keep: Keep | None = None) -> Cost:
    """Counts what the network costs with the filters that are kept, by arithmetic alone.

    Args:
        channels: the model's channels.
        keep: the filters that are kept; by default all.

    Returns:
        The FLOPs of one example, and the numbers of parameters.

    Raises:
        TypeError, ValueError: as `expand` does.

    >>> import flax.linen as nn, numpy as np
    >>> from ntksap_jax.structured import trace
    >>> channels = trace(nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)]), (4,))
    >>> cost(channels)
    Cost(flops=36, layer_params=23, params=23)
    >>> cost(channels, {"layers_0/kernel": np.array([True, False, False])})
    Cost(flops=12, layer_params=9, params=9)
    """
    removed = removed_channels(channels, keep or {})
    entries = {
        path: math.prod(_num_kept(channels, path, axis, removed) for axis in range(len(shape)))
        for path, shape in channels.shapes.items()
        if path.startswith("params/")
    }
    layers = {f"params/{kernel}" for kernel in channels.layers}
    biases = {f"params/{layer.bias}" for layer in channels.layers.values() if layer.bias}
    return Cost(
        flops=sum(
            _flops_left(channels, kernel, removed)
            * entries[f"params/{kernel}"]
            // math.prod(channels.shapes[f"params/{kernel}"])
            for kernel in channels.flops
        ),
        layer_params=sum(entries[path] for path in layers | biases),
        params=sum(entries.values()),
    )


def _flops_left(channels: Channels, kernel: str, removed: np.ndarray) -> int:
    """FLOPs of a kernel without the channels that it is applied across, itself still whole."""
    flops = channels.flops[kernel]
    for whole, axes in channels.across.get(kernel, ()):
        left = math.prod(int(np.sum(~is_removed(labels, removed))) for labels in axes)
        flops -= whole - whole * left // math.prod(map(len, axes))
    return flops


def _num_kept(channels: Channels, path: str, axis: int, removed: np.ndarray) -> int:
    labels = channels.labels[path][axis]
    size = channels.shapes[path][axis]
    return size if labels is None else size - int(np.sum(is_removed(labels, removed)))
