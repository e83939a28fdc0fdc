"""Scores of filters, and the mask of weights that a choice of filters means.

Two kinds of score: `l1`, the mean size of a filter's weights (TPP), and any criterion of
`ntksap_jax.criteria` for the *gate* of a filter (`by_gate`). Filters that are tied, as on a
residual stream, can only go together: each of them has the sum of their scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

from ntksap_jax import _boxes
from ntksap_jax.structured import _leaves
from ntksap_jax.structured.channels import Channels, check_keep, filter_channels
from ntksap_jax.structured.types import Keep
from ntksap_jax.types import Mask, Params, Scores


def l1(params: Params, channels: Channels) -> dict[str, jax.Array]:
    """Scores a filter by the mean of |w| over its weights; the bias does not count.

    Within a layer that is tied to no other it ranks by the L1 norm. Source: Li et al., "Pruning
    filters for efficient ConvNets", ICLR 2017; the mean as in the released code of TPP (Wang and
    Fu, ICLR 2023).

    Args:
        params: the (trained) weights.
        channels: the model's channels; all its layers are scored.

    Returns:
        By path of the kernel, an array (num_filters,); for tied filters the sum of their means.

    Raises:
        ValueError: params that do not fit the layers.

    >>> import flax.linen as nn, jax.numpy as jnp
    >>> from ntksap_jax import structured
    >>> channels = structured.trace(nn.Sequential([nn.Dense(2), nn.relu, nn.Dense(1)]), (2,))
    >>> params = {"layers_0": {"kernel": jnp.array([[1.0, -5.0], [-3.0, 0.0]])},
    ...           "layers_2": {"kernel": jnp.ones((2, 1))}}
    >>> l1(params, channels)["layers_0/kernel"].tolist()
    [2.0, 2.5]
    """
    return tie(mean_sizes(params, channels), channels)


def mean_sizes(
    params: Params, channels: Channels, paths: Iterable[str] | None = None
) -> dict[str, jax.Array]:
    """Returns the mean of |w| over the weights of each filter of some layers, by default of all."""
    return {
        path: jnp.mean(jnp.abs(kernel), axis=tuple(range(kernel.ndim - 1)))
        for path, kernel in _leaves.kernels(params, channels, paths).items()
    }


def by_gate(
    derivatives: Scores, channels: Channels, *, absolute: bool = True
) -> dict[str, jax.Array]:
    r"""Scores a filter by |∂L/∂g|, where g = 1 is a gate that multiplies the mask of its weights.

        ∂L/∂g_j = Σ m_i ∂L/∂m_i,    the sum over the weights i of filter j.

    The absolute value is taken of the sum, so the derivatives must still have their signs: those of
    `criteria.ntk_sap(network, signed=True)`, `snip` or `iterative_snip` with `signed=True`. Scores
    that are positive (`magnitude`, `synflow`, `px`) are simply added up. Filters that are tied
    share a gate, so the sum is over the weights of all of them.

    Args:
        derivatives: m ∂L/∂m at every mask entry, from a criterion with `signed=True`; or the scores
            of another criterion.
        channels: the model's channels; all its layers are scored.
        absolute: False keeps the sign of the sum, which ranks filters by GraSP.

    Returns:
        By path of the kernel, an array (num_filters,), the same for tied filters.

    Raises:
        ValueError: no derivatives for a layer.

    >>> import flax.linen as nn, jax.numpy as jnp
    >>> from ntksap_jax import structured
    >>> channels = structured.trace(nn.Sequential([nn.Dense(2), nn.Dense(1)]), (2,))
    >>> derivatives = {"layers_0": {"kernel": jnp.array([[1.0, -5.0], [-3.0, 0.0]])},
    ...                "layers_1": {"kernel": jnp.ones((2, 1))}}
    >>> by_gate(derivatives, channels)["layers_0/kernel"].tolist()
    [2.0, 5.0]
    """
    sums = {
        path: jnp.sum(leaf, axis=tuple(range(leaf.ndim - 1)))
        for path, leaf in _leaves.kernels(derivatives, channels, argument="derivatives").items()
    }
    totals = tie(sums, channels)
    return {path: jnp.abs(total) for path, total in totals.items()} if absolute else totals


def tie(scores: Mapping[str, jax.Array], channels: Channels) -> dict[str, jax.Array]:
    """Gives every filter the sum of the scores of the filters that it is tied to and its own.

    Args:
        scores: a number per filter, for some or all layers.
        channels: the model's channels.

    Returns:
        Scores for the same layers.
    """
    numbers = {path: filter_channels(channels, path) for path in scores}
    dtype = jnp.result_type(jnp.float32, *scores.values())
    totals = jnp.zeros(channels.num_channels, dtype)
    for path, values in scores.items():
        free = numbers[path] >= 0
        totals = totals.at[numbers[path][free]].add(values[free])
    return {
        path: jnp.where(numbers[path] >= 0, totals[numbers[path]], values)
        for path, values in scores.items()
    }


def to_mask(params: Params, channels: Channels, keep: Keep, *, mask: Mask | None = None) -> Mask:
    """Turns a choice of filters into a mask of weights, which criteria and `masks` understand.

    Only the filters' own weights are pruned: that the next layers lose inputs follows from their
    being zero.

    Args:
        params: the weights that the mask is for.
        channels: the model's channels.
        keep: which filters stay; layers that it leaves out stay whole.
        mask: a mask to restrict further; by default all kernels of the layers, dense.

    Returns:
        The mask: boolean arrays at the kernels of the layers, None at all other leaves.

    Raises:
        ValueError, TypeError: a keep that does not fit the layers.

    >>> import flax.linen as nn, jax.numpy as jnp, numpy as np
    >>> from ntksap_jax import masks, structured
    >>> model = nn.Sequential([nn.Dense(2), nn.Dense(1)])
    >>> params = model.init(jax.random.key(0), jnp.ones((1, 3)))["params"]
    >>> channels = structured.trace(model, (3,))
    >>> mask = to_mask(params, channels, {"layers_0/kernel": np.array([True, False])})
    >>> mask["layers_0"]["bias"], mask["layers_0"]["kernel"][0].tolist(), masks.num_kept(mask)
    (None, [True, False], 5)
    """
    check_keep(channels, keep)
    if mask is None:
        _leaves.kernels(params, channels)
        mask = _boxes.map_named(
            lambda path, leaf: jnp.ones(leaf.shape, bool) if path in channels.layers else None,
            params,
        )
    kernels = _leaves.kernels(mask, channels, keep, argument="mask")
    return _leaves.replace(
        mask,
        {
            path: jnp.moveaxis(kernels[path] & keep[path], -1, channels.layers[path].axis)
            for path in keep
        },
    )
