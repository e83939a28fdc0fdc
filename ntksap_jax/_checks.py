"""Checks of arguments that many functions share."""

from __future__ import annotations

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax import masks


def density(value: Any) -> None:
    """Raises a ValueError unless given a fraction in (0, 1]."""
    if not 0.0 < value <= 1.0:
        raise ValueError(
            f"density: got {value!r}, expected the fraction of weights to keep, in (0, 1]. "
            "(For sparsity s pass 1 - s.)"
        )


def integer(name: str, value: Any, *, at_least: int = 1) -> None:
    """Raises a ValueError that names the argument unless given an integer in its range."""
    if not isinstance(value, numbers.Integral) or value < at_least:
        raise ValueError(f"{name}: got {value!r}, expected an integer of at least {at_least}.")


def native(tree: Any) -> Any:
    """Returns the tree with NumPy's arrays in this machine's byte order, the only one of JAX."""

    def convert(leaf: Any) -> Any:
        foreign = isinstance(leaf, np.ndarray) and not leaf.dtype.isnative
        return leaf.astype(leaf.dtype.newbyteorder("=")) if foreign else leaf

    return jax.tree.map(convert, tree)


def real(params: Any, *, why: str) -> None:
    """Raises a TypeError if params have a complex leaf; shapes are enough.

    Args:
        params: pytree of arrays.
        why: what needs real ones, as the beginning of a sentence.
    """
    for path, leaf in masks.leaf_paths(params).items():
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError(
                f"params: leaf {path!r} is {leaf.dtype}. {why} real weights only. Complex ones are "
                "for criteria by derivatives (NTK-SAP, SNIP, FORCE, GraSP) and magnitude."
            )
