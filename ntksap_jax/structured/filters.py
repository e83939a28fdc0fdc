"""Filters: what to score them by, and what a choice of them (`Keep`) means.

A filter is one output channel of a convolution or dense layer, one index of its kernel's last axis.
Scores of filters are a dictionary from the kernel's path to an array with a number per filter;
higher means keep. `filter_selection` and `global_selection` turn them into a `Keep`.

Two kinds of score: `l1`, the mean size of a filter's weights (TPP), and any criterion of
`ntksap_jax.criteria` for the *gate* of a filter, a factor 1 on all its weights. By the chain rule
the derivative with respect to the gate is the sum of the derivatives with respect to the mask
entries below it, so the absolute value comes after the sum (`by_gate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax._placement import is_traced
from ntksap_jax.structured import _leaves
from ntksap_jax.structured.channels import Channels, filter_channels
from ntksap_jax.structured.types import FilterLayer, Keep
from ntksap_jax.types import Mask, Params, Scores

Layers = Mapping[str, FilterLayer]
"""The layers of a model by path of their kernel, in the order of calls."""

FilterScores = dict[str, jax.Array]
"""A number per filter, by path of the kernel; higher means keep."""


# -- Scores --------------------------------------------------------------------------------------


def l1(params: Params, layers: Layers) -> FilterScores:
    """Scores a filter by the mean of |w| over its weights; the bias does not count.

    Within a layer that ranks by the L1 norm. Source: Li et al., "Pruning filters for efficient
    ConvNets", ICLR 2017; the mean as in the released code of TPP (Wang and Fu, ICLR 2023).

    Args:
        params: the (trained) weights.
        layers: the layers to score.

    Returns:
        By path of the kernel, an array (num_filters,).

    Raises:
        ValueError: params that do not fit the layers.

    >>> import jax.numpy as jnp
    >>> layers = {"kernel": FilterLayer("kernel", 0, 2, None, None, None, None, None, True)}
    >>> l1({"kernel": jnp.array([[1.0, -5.0], [-3.0, 0.0]])}, layers)["kernel"].tolist()
    [2.0, 2.5]
    """
    return {
        path: jnp.mean(jnp.abs(kernel), axis=tuple(range(kernel.ndim - 1)))
        for path, kernel in _leaves.kernels(params, layers).items()
    }


def sums(scores: Scores, layers: Layers) -> FilterScores:
    """Sums a criterion's scores over the weights of every filter, signs included.

    For criteria whose scores have a sign that matters (GraSP) or are positive by themselves
    (magnitude, SynFlow, PX); for derivatives see `by_gate`.

    Args:
        scores: what a `ScoreFn` returned.
        layers: the layers to score.

    Returns:
        By path of the kernel, an array (num_filters,).

    Raises:
        ValueError: no scores for a layer, or of another number of filters.

    >>> import jax.numpy as jnp
    >>> layers = {"kernel": FilterLayer("kernel", 0, 2, None, None, None, None, None, True)}
    >>> sums({"kernel": jnp.array([[1.0, -5.0], [-3.0, 0.0]])}, layers)["kernel"].tolist()
    [-2.0, -5.0]
    """
    return {
        path: jnp.sum(leaf, axis=tuple(range(leaf.ndim - 1)))
        for path, leaf in _leaves.kernels(scores, layers, argument="scores").items()
    }


def by_gate(derivatives: Scores, channels: Channels) -> FilterScores:
    r"""Scores a filter by |∂L/∂g|, g = 1 a gate that multiplies the mask of all its weights.

        ∂L/∂g_j = Σ m_i ∂L/∂m_i,    the sum over the weights i of filter j.

    The absolute value comes after the sum. So the derivatives must still have their signs: those of
    `criteria.ntk_sap(network, signed=True)`, `snip` or `iterative_snip` with `signed=True`.
    (Of `magnitude`, `synflow` and `px`, which are positive, it is the plain sum.) Filters that are
    tied, as on a residual stream, have one gate together: the sum goes over all of them.

    Args:
        derivatives: m ∂L/∂m at every mask entry, from a criterion with `signed=True`.
        channels: the model's channels; all its layers are scored.

    Returns:
        By path of the kernel, an array (num_filters,), the same for tied filters.

    Raises:
        ValueError: no derivatives for a layer.

    >>> import flax.linen as nn, jax.numpy as jnp
    >>> from ntksap_jax.structured.tracing import trace
    >>> channels = trace(nn.Sequential([nn.Dense(2), nn.Dense(1)]), (2,))
    >>> derivatives = {"layers_0": {"kernel": jnp.array([[1.0, -5.0], [-3.0, 0.0]])},
    ...                "layers_1": {"kernel": jnp.ones((2, 1))}}
    >>> by_gate(derivatives, channels)["layers_0/kernel"].tolist()
    [2.0, 5.0]
    """
    totals = tie(sums(derivatives, channels.layers), channels)
    return {path: jnp.abs(total) for path, total in totals.items()}


def tie(scores: Mapping[str, jax.Array], channels: Channels) -> FilterScores:
    """Adds up the scores of filters that can only go together, and gives each of them the sum.

    Args:
        scores: a number per filter, for some or all layers.
        channels: the model's channels.

    Returns:
        Scores for the same layers.

    >>> import flax.linen as nn, jax.numpy as jnp
    >>> from ntksap_jax.structured.tracing import trace
    >>> class Residual(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         x = nn.Dense(2, name="first")(x)
    ...         return nn.Dense(1, name="last")(x + nn.Dense(x.shape[-1], name="second")(x))
    >>> tied = tie({"first/kernel": jnp.ones(2), "second/kernel": jnp.arange(2.0)},
    ...            trace(Residual(), (3,)))
    >>> {path: array.tolist() for path, array in tied.items()}
    {'first/kernel': [1.0, 2.0], 'second/kernel': [1.0, 2.0]}
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


# -- Choices -------------------------------------------------------------------------------------


def check(keep: Keep, layers: Layers) -> None:
    """Raises unless `keep` fits the layers: known paths, a boolean for each filter, none emptied.

    Raises:
        ValueError: a path that is no layer's, another number of filters, a layer whose filters must
            stay, or (where the values are known) one that would lose them all.
        TypeError: an array that is not boolean.
    """
    for path, kept in keep.items():
        if path not in layers:
            raise ValueError(
                f"keep: {path!r} is no kernel of the layers. Expected some of: {', '.join(layers)}."
            )
        layer = layers[path]
        if getattr(kept, "dtype", None) != np.dtype(bool):
            kind = getattr(kept, "dtype", type(kept).__name__)
            raise TypeError(f"keep: {path!r} is {kind}, expected a boolean array, True keeps.")
        if kept.shape != (layer.num_filters,):
            raise ValueError(
                f"keep: {path!r} has shape {kept.shape}, expected ({layer.num_filters},), one "
                "boolean a filter."
            )
        if is_traced(kept):
            continue
        if not layer.removable and not np.all(kept):
            raise ValueError(
                f"keep: {path!r} would lose filters, but its outputs must stay (it is the output "
                "layer, or tied to something that cannot shrink). Leave it out."
            )
        if not np.any(kept):
            raise ValueError(
                f"keep: {path!r} would lose all its {layer.num_filters} filters, which cuts the "
                "network in two. Keep at least one."
            )


def to_mask(params: Params, layers: Layers, keep: Keep, *, mask: Mask | None = None) -> Mask:
    """Turns a choice of filters into a mask of weights, which criteria and `masks` understand.

    Only the filters' own weights: that the next layers lose inputs follows from their being zero.

    Args:
        params: the weights that the mask is for.
        layers: all layers of the model; those that `keep` leaves out stay whole.
        keep: which filters stay.
        mask: a mask to restrict further; by default all kernels of the layers, dense.

    Returns:
        The mask: boolean arrays at the kernels of the layers, None at all other leaves.

    Raises:
        ValueError, TypeError: a keep that does not fit the layers.

    >>> import jax.numpy as jnp
    >>> from ntksap_jax import masks
    >>> layers = {"kernel": FilterLayer("kernel", 0, 2, None, None, None, None, None, True)}
    >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    >>> new = to_mask(params, layers, {"kernel": np.array([True, False])})
    >>> new["bias"], new["kernel"][0].tolist(), masks.num_kept(new)
    (None, [True, False], 3)
    """
    check(keep, layers)
    if mask is None:
        full = {p: jnp.ones(k.shape, bool) for p, k in _leaves.kernels(params, layers).items()}
        mask = jax.tree_util.tree_map_with_path(
            lambda path, leaf: full.get(jax.tree_util.keystr(path, simple=True, separator="/")),
            params,
        )
    kernels = _leaves.kernels(mask, {path: layers[path] for path in keep}, argument="mask")
    return _leaves.replace(mask, {path: kernels[path] & keep[path] for path in keep})


class Magnitudes(NamedTuple):
    """Mean |w| of a layer's weights in the filters that stay and in those that go (0 if none)."""

    kept: jax.Array
    pruned: jax.Array


def magnitudes(params: Params, layers: Layers, keep: Keep) -> dict[str, Magnitudes]:
    """Measures how far the pruned filters have gone to zero, layer by layer. Traceable.

    Args:
        params: the weights.
        layers: the layers.
        keep: which filters stay; the layers that it leaves out are not measured.

    Returns:
        By path of the kernel.

    Raises:
        ValueError, TypeError: params or a keep that do not fit the layers.

    >>> import jax.numpy as jnp
    >>> layers = {"kernel": FilterLayer("kernel", 0, 2, None, None, None, None, None, True)}
    >>> params, keep = {"kernel": jnp.array([[4.0, -0.5]])}, {"kernel": np.array([True, False])}
    >>> [float(mean) for mean in magnitudes(params, layers, keep)["kernel"]]
    [4.0, 0.5]
    """
    check(keep, layers)
    chosen = {path: layers[path] for path in keep}

    def mean(scores: jax.Array, where: Any) -> jax.Array:
        return jnp.sum(jnp.where(where, scores, 0)) / jnp.maximum(jnp.sum(where), 1)

    return {
        path: Magnitudes(mean(scores, keep[path]), mean(scores, ~keep[path]))
        for path, scores in l1(params, chosen).items()
    }
