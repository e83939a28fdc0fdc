"""Names of version 0.1, which work for one more version and say what they are called now."""

from __future__ import annotations

import functools
import importlib
import operator
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

RENAMED = {
    "networks.Network": "types.Network",
    "networks.linen": "linen",
    "networks.nnx": "nnx",
    "networks.nnx_batch_stats": "exchange.nnx_batch_stats",
    "networks.nnx_params": "exchange.nnx_params",
    "networks.plain": "plain",
    "optim.ConstrainToMaskState": "types.ConstrainToMaskState",
    "optim.constrain_to_mask": "constrain_to_mask",
    "search.find_mask": "find_mask",
    "search.prune": "prune",
    "subsets.class_balanced": "criteria.class_balanced",
}
"""Old name to new name, both within `ntksap_jax`."""


def warn(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warns that a name is an old one."""
    message = f"{old} is deprecated and will be removed in the next version; use {new}."
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)


def __getattr__(name: str) -> Any:
    """The package's `__getattr__`: a module that is no longer there, with its old names."""
    if f"ntksap_jax.{name}" not in _MODULES:
        raise AttributeError(f"module 'ntksap_jax' has no attribute {name!r}")
    return _MODULES[f"ntksap_jax.{name}"]


def _module(name: str) -> types.ModuleType:
    """Makes a module of the old names that begin so."""
    module = types.ModuleType(f"ntksap_jax.{name}")

    def renamed(attribute: str) -> Any:
        old = f"{name}.{attribute}"
        if old not in RENAMED:
            raise AttributeError(f"module 'ntksap_jax.{name}' has no attribute {attribute!r}")
        warn(f"ntksap_jax.{old}", f"ntksap_jax.{RENAMED[old]}")
        return operator.attrgetter(RENAMED[old])(importlib.import_module("ntksap_jax"))

    module.__dict__["__getattr__"] = renamed
    return module


_MODULES = {
    f"ntksap_jax.{name}": _module(name) for name in {old.partition(".")[0] for old in RENAMED}
}
sys.modules.update(_MODULES)  # For `import ntksap_jax.search`, and `from ntksap_jax.search import`.


def floors(function: Function) -> Function:
    """Lets a function with a `scope` take the floors of `scopes.Global` by themselves."""

    @functools.wraps(function)
    def with_floors(*args: Any, **kwargs: Any) -> Any:
        given = {
            name: kwargs.pop(name) for name in ("min_weights", "min_channels") if name in kwargs
        }
        if given:
            options = ", ".join(f"{name}={floor!r}" for name, floor in given.items())
            warn(options, f"scope=ntksap_jax.scopes.Global({options})")
        if any(given.values()):
            if kwargs.get("scope", "global") != "global":
                raise ValueError(f"{options}: floors go with scope='global'.")
            kwargs["scope"] = importlib.import_module("ntksap_jax.scopes").Global(**given)
        return function(*args, **kwargs)

    return with_floors  # type: ignore[return-value]
