"""Names of version 0.1, which work for one more version and say what they are called now."""

from __future__ import annotations

import importlib
import operator
import types
import warnings
from typing import Any

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
    if not any(old.startswith(f"{name}.") for old in RENAMED):
        raise AttributeError(f"module 'ntksap_jax' has no attribute {name!r}")
    module = types.ModuleType(f"ntksap_jax.{name}")

    def renamed(attribute: str) -> Any:
        old = f"{name}.{attribute}"
        if old not in RENAMED:
            raise AttributeError(f"module 'ntksap_jax.{name}' has no attribute {attribute!r}")
        warn(f"ntksap_jax.{old}", f"ntksap_jax.{RENAMED[old]}")
        return operator.attrgetter(RENAMED[old])(importlib.import_module("ntksap_jax"))

    module.__dict__["__getattr__"] = renamed
    return module
