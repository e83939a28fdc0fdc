"""The records that everything about filters speaks.

A *filter* is one output channel of a convolution or dense layer: one index of the axis of its
kernel that counts outputs, the last one in Flax's layouts (H, W, in, out) and (in, out). Of an
attention's kernel (in, heads, dims) it is a head. A *channel* is a set of filters and other indices
that can only be removed together.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

Keep = Mapping[str, jax.Array | np.ndarray]
"""Kernel path to boolean array (num_filters,), True keeps. A layer that is absent stays whole."""

FilterScores = Mapping[str, jax.Array | np.ndarray]
"""Kernel path to an array (num_filters,); a higher score means keep."""


class FilterLayer(NamedTuple):
    """One convolution or dense layer, and what belongs to its filters.

    All paths are those of `ntksap_jax.masks`: the names of the leaves joined by /.

    Attributes:
        kernel: path of the kernel in the parameters, such as "block_0/conv1/kernel".
        index: place in the order of calls among all convolution and dense layers of the model,
            pruned or not, from 0.
        num_filters: how many filters it has.
        bias: path of the layer's own bias in the parameters, None without one.
        scale: path of the scale of the normalisation right behind the layer, None without one.
        shift: path of that normalisation's shift (Flax calls it "bias"), None without one.
        mean: path of its running mean in "batch_stats", None without one.
        var: path of its running variance in "batch_stats", None without one.
        removable: whether single filters can go; False for the output layer and for others whose
            outputs must stay.
        axis: the axis of the kernel that counts filters, from the end: -1, but -2 for the heads of
            an attention's (inputs, heads, dims) and for PyTorch's order (outputs, inputs).

    >>> import flax.linen as nn
    >>> from ntksap_jax.structured import trace
    >>> layer = trace(nn.Sequential([nn.Dense(8), nn.Dense(3)]), (4,)).layers["layers_0/kernel"]
    >>> layer.index, layer.num_filters, layer.bias, layer.scale, layer.removable
    (0, 8, 'layers_0/bias', None, True)
    """

    kernel: str
    index: int  # type: ignore[assignment]  # (tuples have a method of this name)
    num_filters: int
    bias: str | None
    scale: str | None
    shift: str | None
    mean: str | None
    var: str | None
    removable: bool
    axis: int = -1
