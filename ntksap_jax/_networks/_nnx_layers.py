"""Layers of `flax.nnx` that behave otherwise in a score.

flax.nnx has no interceptors: where a layer must behave otherwise, its class is another one, in our
copy of the model alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx as flax_nnx

from ntksap_jax._networks._checks import ModelError
from ntksap_jax._networks._embedding import is_embedded
from ntksap_jax._networks._statistics import moments, unbiased_variance

UNSET = jnp.dtype(bool)
"""The type of statistics that no call has set yet: a second call is recognised by it."""


def _set(variable: Any, value: jax.Array) -> None:
    """Replaces it whole, whatever its dtype was."""
    if hasattr(flax_nnx.Variable, "set_value"):
        variable.set_value(value)
    else:  # Flax before 0.12
        variable.value = value


class Norm(flax_nnx.BatchNorm):
    """Takes its batch's statistics, as constants, for its running averages, and keeps them."""

    constant = True
    unbiased = False
    ntksap_path: str

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        name = f"model: BatchNorm {self.ntksap_path!r}"
        given = args[0] if args else kwargs.get("use_running_average")
        if not (self.use_running_average if given is None else given):
            raise ModelError(
                f"{name} is in training mode. Pass the arguments of your model that mean "
                "evaluation, such as ntksap_jax.nnx(..., train=False); the batch's own statistics "
                "are then used all the same."
            )
        if self.mean.dtype != UNSET:
            raise ModelError(
                f"{name} is called twice, so it has no one set of statistics. Give each call a "
                "BatchNorm of its own."
            )
        if kwargs.get("mask") is not None:
            raise ModelError(
                f"{name} is given a mask of its inputs, which is not supported here: score without "
                "padding."
            )
        mean, var, count = moments(x, self.axis, constant=self.constant)
        _set(self.mean, mean)
        _set(self.var, var)
        outputs = super().__call__(x, *args, **kwargs)
        if self.unbiased:
            _set(self.var, unbiased_variance(var, count, self.ntksap_path))
        return outputs


class TrainingNorm(Norm):
    """The same values, with derivatives through the statistics."""

    constant = False


class UnbiasedNorm(Norm):
    """Keeps the unbiased variance."""

    unbiased = True


NORMS = (Norm, TrainingNorm, UnbiasedNorm)
TRAINING = "training"
"""The model as it is, with its normalisation, but nothing else, in training mode."""


class _Embed(flax_nnx.Embed):
    """Passes on what is embedded already."""

    ntksap_path: str

    def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        if is_embedded(inputs, self.features, self.ntksap_path):
            return inputs
        return super().__call__(inputs, *args, **kwargs)


def graphdef_of(model: flax_nnx.Module, norm: type | None) -> Any:
    """Returns the structure of a model some of whose layers are replaced; the model stays as it is.

    Args:
        model: the model.
        norm: what takes the place of `nnx.BatchNorm`, or None.
    """
    replacements: list[tuple[type, type]] = [(flax_nnx.Embed, _Embed)]
    if norm is not None:
        replacements.append((flax_nnx.BatchNorm, norm))
    replaced: list[tuple[Any, type]] = []
    for _, node in list(flax_nnx.iter_graph(model)):
        for kind, replacement in replacements:
            if isinstance(node, kind):
                given: Any = type(node)
                replaced.append((node, given))
                _change_class(node, _mixed(given, kind, replacement))
    graphdef = flax_nnx.graphdef(model)
    for node, before in replaced:
        _change_class(node, before)
    return graphdef


def _change_class(node: Any, new: type) -> None:
    # Not by assignment, which nnx takes for an attribute of the model.
    object.__setattr__(node, "__class__", new)


@functools.cache
def _mixed(given: type, kind: type, replacement: type) -> type:
    """Returns a subclass of the given kind of layer that comes to `replacement` before `kind`."""
    if given is kind:
        return replacement
    return type(given)(given.__name__, (given, replacement), {"__module__": given.__module__})


def without_sharding(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns a convolution that takes `out_sharding`, as `nnx.Conv` passes it on."""

    def convolve(*args: Any, out_sharding: Any = None, **kwargs: Any) -> jax.Array:
        if out_sharding is not None:
            kwargs["out_sharding"] = out_sharding
            return jax.lax.conv_general_dilated(*args, **kwargs)
        return function(*args, **kwargs)

    return convolve
