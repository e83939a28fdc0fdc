"""Checks of arguments that many functions share."""

from __future__ import annotations

import numbers
from typing import Any


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
