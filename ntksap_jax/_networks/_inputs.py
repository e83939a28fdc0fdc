"""What a network takes: one array, or several by name or position."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ntksap_jax.types import Inputs


def check_shape(input_shape: Any, otherwise: str = "") -> tuple[int, ...]:
    """Returns the shape of one example as a tuple; raises a TypeError if it is none.

    Args:
        input_shape: the shape.
        otherwise: what else could have been given, for the message.
    """
    try:
        return tuple(operator.index(size) for size in input_shape)
    except TypeError:
        raise TypeError(
            f"input_shape: got {input_shape!r}, expected the shape of one example as a tuple, such "
            f"as (32, 32, 3){otherwise}."
        ) from None


def specification(input_shape: Any, dtype: Any) -> tuple[Any, Any]:
    """Returns the shapes of one example's inputs and their types, in two trees of the same form.

    Args:
        input_shape: a shape, a `jax.ShapeDtypeStruct`, or a dict, tuple or list of such.
        dtype: the type of inputs that come as a bare shape.

    Raises:
        TypeError: none of these.
    """
    if isinstance(input_shape, jax.ShapeDtypeStruct):
        return input_shape.shape, jax.dtypes.canonicalize_dtype(input_shape.dtype)
    if isinstance(input_shape, Mapping):
        each = {name: specification(shape, dtype) for name, shape in input_shape.items()}
        return {name: s for name, (s, _) in each.items()}, {
            name: d for name, (_, d) in each.items()
        }
    containers = (tuple, list, Mapping, jax.ShapeDtypeStruct)
    if isinstance(input_shape, (tuple, list)) and any(
        isinstance(part, containers) for part in input_shape
    ):
        pairs = [specification(shape, dtype) for shape in input_shape]
        return tuple(s for s, _ in pairs), tuple(d for _, d in pairs)
    several = (
        "; or for several inputs a dict or a tuple of such shapes, or of jax.ShapeDtypeStruct "
        "where types differ"
    )
    return check_shape(input_shape, several), jnp.dtype(dtype)


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments that a model is called with: a dict holds them by name."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}
