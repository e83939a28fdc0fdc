"""Numbers that a module's code goes by, such as that of heads, where some of them are removed."""

from __future__ import annotations

import copy
import numbers
import types
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax import nnx


def with_sizes(attributes: Mapping[str, Any], sizes: Mapping[int, int]) -> dict[str, Any]:
    """Returns those of a module's attributes that say one of some numbers, with the new number.

    They may be attributes of one that is no module, such as a configuration.
    """
    new: dict[str, Any] = {}
    for name, value in attributes.items() if sizes else ():
        if name.startswith("_") or isinstance(value, bool | nn.Module | nnx.Module):
            continue
        if isinstance(value, numbers.Integral):
            if int(value) in sizes:
                new[name] = sizes[int(value)]
        elif hasattr(value, "__dict__") and not isinstance(value, type | types.FunctionType):
            changed = {
                inner: sizes[number]
                for inner, number in vars(value).items()
                if type(number) is int and number in sizes
            }
            if changed:
                new[name] = copy.copy(value)
                vars(new[name]).update(changed)
    return new
