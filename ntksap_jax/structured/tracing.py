"""Finds the channels of a model, by going through the operations that it carries out.

What is found is tried out: the model is made smaller by a few channels of each group of layers, and
must then carry out the same operations on smaller arrays.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ntksap_jax import _boxes
from ntksap_jax.structured import _nnx_model, _program, _resized
from ntksap_jax.structured._labelling import Tracing
from ntksap_jax.structured.channels import (
    Channels,
    expected_program,
    filter_channels,
    groups,
    is_removed,
    kept_indices,
    whole_layers,
)
from ntksap_jax.types import Params


def trace(
    model: Any,
    input_shape: Any,
    *,
    dtype: Any = jnp.float32,
    params: Params | None = None,
    **apply_kwargs: Any,
) -> Channels:
    """Finds the channels of a model by tracing it; nothing is computed.

    A filter is removable if the model without its channel computes what the whole model computes
    after `zero_out`. Three things are needed. Every operation on the way must be known:
    convolutions, dense layers, batch normalisation, sums, products, activations, pools, flattening,
    concatenation, padding and slices. Activations f must have f(0) = 0. And the code of the model
    must still work when the number of channels changes, which is tried out on a few channels of
    each group of layers. If one of these fails, the layer is not removable; `reasons` says why.

    Args:
        model: the (unbound) linen module, or the nnx model, called as
            `model(inputs, **apply_kwargs)`; of a copy of the nnx model, after `eval()`. Or a
            function, called as `model(params, inputs, **apply_kwargs)`, such as one that puts an
            Equinox model together and calls it; it must go by the shapes of its params, which
            Haiku's functions do not: they compare them with their own.
        input_shape: shape of one example, without the batch axis; or shapes of several inputs, as
            for `ntksap_jax.linen`.
        dtype: type of the inputs that come as a shape alone.
        params: of a function, its params or their shapes.
        **apply_kwargs: arguments that put the module in *evaluation* mode, such as `train=False`.

    Returns:
        The channels.

    Raises:
        TypeError: `model` is no unbound linen module, no nnx model and no function with `params`,
            or `input_shape` is no shape.
        ValueError: a model that cannot be called so, or of which no layer is removable: the
            operations that are in the way are named.

    >>> import flax.linen as nn
    >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
    >>> channels = trace(model, (4,))
    >>> [(layer.kernel, layer.num_filters, layer.removable) for layer in channels.layers.values()]
    [('layers_0/kernel', 8, True), ('layers_2/kernel', 3, False)]
    >>> channels.labels["params/layers_2/kernel"][0]  # reads what layer 0 writes
    array([0, 1, 2, 3, 4, 5, 6, 7])
    >>> channels.reasons["layers_2/kernel"]
    "they are the model's outputs"
    """
    call = _program.call_of(input_shape, dtype, apply_kwargs)
    _check_model(model, params)
    if params is None:
        variables = _program.shapes_of(model, call)
    else:
        variables = {"params": jax.eval_shape(lambda params: params, params)}
    tracing = Tracing(model, variables, call)
    channels = tracing.channels()
    together = groups(channels)
    # Layers that are tied to others, on residual streams, are where a model's code counts channels.
    for tied in (False, True):
        some = [group for group in together if (len(group) > 1) is tied]
        for group, reason in _unfit(model, variables, channels, some):
            tracing.fix(group[0], reason)
    channels = tracing.channels()
    if not any(layer.removable for layer in channels.layers.values()):
        why = whole_layers(channels) if channels.reasons else "it has no convolution or dense layer"
        raise ValueError(f"model: no filter of any layer can be removed: {why}.")
    return channels


def misfit(model: Any, shapes: Any, channels: Channels, removed: np.ndarray) -> str | None:
    """Says what the model does otherwise without some channels than it should, None if nothing.

    Args:
        model: the model that was traced.
        shapes: its variables as they are initialised, whatever precision they were given since.
        channels: its channels.
        removed: result of `removed_channels`.
    """
    kept = {path: kept_indices(channels, path, removed) for path in channels.labels}

    def shape(path: str, leaf: Any) -> jax.ShapeDtypeStruct:
        indices = kept[path]
        sizes = [
            size if index is None else len(index)
            for size, index in zip(leaf.shape, indices, strict=True)
        ]
        return jax.ShapeDtypeStruct(tuple(sizes), leaf.dtype)

    fewer = _boxes.map_named(shape, shapes)
    small = resize(model, fewer, channels, removed)
    expected = expected_program(channels, removed)
    return _resized.mismatch(small, fewer, channels.call, expected)


def is_function(model: Any) -> bool:
    """Whether a model is a function of params and inputs, and no module."""
    return callable(model) and not isinstance(model, type | nn.Module | nnx.Module)


def resize(model: Any, variables: Any, channels: Channels, removed: np.ndarray) -> Any:
    """Returns the model without some channels.

    Args:
        model: the model that was traced.
        variables: what is left of its variables; an nnx model holds them then.
        channels: its channels.
        removed: result of `removed_channels`.
    """
    sizes = {
        module: tuple((size, int(np.sum(~is_removed(axis, removed)))) for size, axis in own)
        for module, own in channels.sizes.items()
    }
    if isinstance(model, nnx.Module):
        return _nnx_model.resized(model, variables, sizes)
    if is_function(model):
        return model

    # Also those that stay: a block may hand its own number, which changes, to a layer's.
    def left(number: Any) -> int:
        return number if isinstance(number, int) else int(np.sum(~is_removed(number, removed)))

    features = {module: tuple(map(left, own)) for module, own in channels.features.items()}
    return _resized.resize(model, features, sizes)


def _unfit(
    model: Any, shapes: Any, channels: Channels, some: list[tuple[str, ...]]
) -> list[tuple[tuple[str, ...], str]]:
    """Finds the groups of layers whose number of filters the model's own code does not let change.

    Some channels of each are taken away from all together; if that fails, from each half.
    """
    if not some:
        return []
    removed = np.zeros(channels.num_channels, bool)
    for group in some:
        _remove_some(channels, group, removed)
    wrong = misfit(model, shapes, channels, removed)
    if wrong is None:
        return []
    if len(some) == 1:
        reason = f"the model's own code depends on how many there are: {wrong}"
        return [(some[0], reason)]
    half = len(some) // 2
    return [
        found
        for part in (some[:half], some[half:])
        for found in _unfit(model, shapes, channels, part)
    ]


def _remove_some(channels: Channels, group: tuple[str, ...], removed: np.ndarray) -> None:
    """Removes a lopsided few of each layer's filters, so that code that centres or halves shows."""
    numbers = {path: filter_channels(channels, path) for path in group}
    for path in group:
        for index in (0, -1, -2, -3):
            before = removed.copy()
            removed[numbers[path][index % len(numbers[path])]] = True
            left = [len(one) - int(np.sum(removed[one])) for one in numbers.values()]
            if min(left) < 1 or (min(left) == 1 and index):
                removed[:] = before


def _check_model(model: Any, params: Any) -> None:
    if is_function(model):
        if params is None:
            raise TypeError(
                "params: got None, but `model` is a function, whose params nothing tells. Pass "
                "those that it is called with."
            )
        return
    if params is not None:
        raise TypeError(f"params: only functions take them; {type(model).__name__} knows its own.")
    if isinstance(model, nnx.Module):
        return
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model: got {type(model).__name__}, expected a flax.linen module such as MyModel(...),"
            " a flax.nnx model, or a function of params and inputs."
        )
    if model.scope is not None:
        raise TypeError(
            "model: got a bound module; pass the module itself, before bind() or init()."
        )
