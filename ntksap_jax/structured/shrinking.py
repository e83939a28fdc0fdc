"""Making a network physically smaller: the filters that are pruned go, the function stays.

First `zero_out` sets what belongs to the pruned filters to 0; from then on the network computes the
same without them, which is what `shrink` makes: the same module with fewer features, and its
variables. What it returns is a module and variables like any other: they can be trained,
pruned, traced and shrunk again.
"""

from __future__ import annotations

from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax import _boxes, masks
from ntksap_jax.structured import _program, tracing
from ntksap_jax.structured import channels as channels_
from ntksap_jax.structured.channels import Channels
from ntksap_jax.structured.types import Keep


def zero_out(variables: Any, channels: Channels, keep: Keep) -> Any:
    """Sets everything that belongs to the removed filters to 0, so that they contribute nothing.

    These are the entries of kernels, biases, scales and shifts, in all layers that are tied (and
    the running mean of a normalisation without a scale). The inputs of later layers and the other
    statistics stay as they are. The activations of these filters are then 0, in training mode too.

    Args:
        variables: `{"params": ..., "batch_stats": ...}` of the model that was traced; may be
            traced by `jit`.
        channels: the model's channels.
        keep: by kernel path, which filters are kept; see `structured.expand`.

    Returns:
        New variables of the same shapes.

    Raises:
        TypeError, ValueError: variables that are not the traced model's; or a wrong `keep`, as in
            `structured.expand`.

    >>> import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
    >>> from ntksap_jax.structured import trace
    >>> model = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)])
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
    >>> keep = {"layers_0/kernel": np.array([True, False, True])}
    >>> zeroed = zero_out(variables, trace(model, (4,)), keep)
    >>> (zeroed["params"]["layers_0"]["kernel"] == 0).all(axis=0).tolist()
    [False, True, False]
    """
    variables = check_variables(variables, channels)
    channels_.expand(channels, keep)
    removed = channels_.removed_channels(channels, keep)

    def zero(path: str, leaf: Any) -> Any:
        kept = channels_.kept_indices(channels, path, removed)
        for axis in channels.zeroed[path]:
            if (indices := kept[axis]) is not None:
                stays = np.isin(np.arange(leaf.shape[axis]), indices)
                stays = stays.reshape([-1 if i == axis else 1 for i in range(leaf.ndim)])
                leaf = jnp.where(stays, leaf, jnp.zeros_like(leaf))
        return leaf

    return _boxes.map_named(zero, variables)


def shrink(model: Any, variables: Any, channels: Channels, keep: Keep) -> tuple[Any, Any]:
    """Removes the filters that are not kept, and everything that belongs to them.

    Nothing is rescaled or compensated for. After `zero_out` with the same `keep`, the function is
    the same up to rounding; without it, the contribution of the removed filters is lost.

    Args:
        model: the module or function that was traced; perhaps itself a shrunk one.
        variables: its `{"params": ..., "batch_stats": ...}`.
        channels: result of `structured.trace` for this model.
        keep: by kernel path, which filters are kept; see `structured.expand`.

    Returns:
        The smaller module, and its variables, on the default device. A linen module is `model` run
        with other numbers of features: it takes the same arguments, has parameters of the same
        paths, and can be initialised afresh (a network of the pruned architecture, from scratch).
        An nnx model is a copy whose layers are smaller, and holds these variables. A function is
        the same function.

    Raises:
        TypeError, ValueError: variables that are not the traced model's; a wrong `keep`, as in
            `structured.expand`; or a model whose own code would do something else with these
            numbers of features: the place is named.

    >>> import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
    >>> from ntksap_jax.structured import trace
    >>> model = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)])
    >>> variables, channels = model.init(jax.random.key(0), jnp.ones((1, 4))), trace(model, (4,))
    >>> keep = {"layers_0/kernel": np.array([True, False, True])}
    >>> zeroed = zero_out(variables, channels, keep)
    >>> small, fewer = shrink(model, zeroed, channels, keep)
    >>> fewer["params"]["layers_2"]["kernel"].shape
    (2, 2)
    >>> x = jnp.arange(8.0).reshape(2, 4)
    >>> bool(jnp.allclose(small.apply(fewer, x), model.apply(zeroed, x), atol=1e-6))
    True
    """
    variables = check_variables(variables, channels)
    channels_.expand(channels, keep)
    removed = channels_.removed_channels(channels, keep)
    if tracing.is_function(model):
        shapes = jax.eval_shape(lambda leaves: leaves, variables)
    else:
        shapes = _program.shapes_of(model, channels.call)
    wrong = tracing.misfit(model, shapes, channels, removed)
    if wrong is not None:
        raise ValueError(
            "keep: the model's own code does not follow when these filters go: "
            f"{wrong}. Keep other numbers of filters in the layers there, or change the code so "
            "that it does not depend on numbers of channels."
        )

    def take(path: str, leaf: Any) -> jax.Array:
        array = np.asarray(leaf)  # on the host: every shape is another, and would be compiled for
        for axis, kept in enumerate(channels_.kept_indices(channels, path, removed)):
            if kept is not None:
                array = np.take(array, kept, axis=axis)
        return jnp.asarray(array)

    fewer = _boxes.map_named(take, variables)
    small = tracing.resize(model, fewer, channels, removed)
    if isinstance(small, nn.Module):
        _check_init(small, fewer, channels)
    return small, fewer


def check_variables(variables: Any, channels: Channels) -> Any:
    """Returns the traced model's variables unfrozen; raises a ValueError if they are not its."""
    variables = flax.core.unfreeze(variables)
    found = {path: np.shape(leaf) for path, leaf in masks.leaf_paths(variables).items()}
    for path in channels.shapes | found:
        if channels.shapes.get(path) != found.get(path):
            raise ValueError(
                f"variables: leaf {path!r} has shape {found.get(path)}, the traced model's has "
                f'{channels.shapes.get(path)}. Pass {{"params": ..., "batch_stats": ...}} of the '
                "model that structured.trace was called with."
            )
    return variables


def _check_init(small: nn.Module, variables: Any, channels: Channels) -> None:
    """The smaller model must initialise to what it was given, so that it can start from scratch."""
    fresh = masks.leaf_paths(_program.shapes_of(small, channels.call))
    for path, leaf in masks.leaf_paths(variables).items():
        if path not in fresh or fresh[path].shape != leaf.shape:
            raise ValueError(
                f"keep: the model's own code initialises leaf {path!r} to shape "
                f"{fresh[path].shape if path in fresh else None} when these filters go, expected "
                f"{leaf.shape}. Keep all filters of the layers that it belongs to."
            )
