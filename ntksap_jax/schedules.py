"""Schedules: the density after each round of the search, as a plain array."""

from __future__ import annotations

import numbers

import numpy as np


def exponential(density: float, *, rounds: int) -> np.ndarray:
    """The density d^(t/T) after round t = 1, ..., T: the same share of what is left each round.

    The schedule of NTK-SAP (Wang, Li, Sun, ICLR 2023, Algorithm 1) and of SynFlow.

    Args:
        density: the final density d, in (0, 1].
        rounds: the number of rounds T, at least 1.

    Returns:
        Array of `rounds` float64 densities, the last of them exactly `density`.

    Raises:
        ValueError: a density outside (0, 1], or fewer than one round.

    >>> exponential(0.01, rounds=2).tolist()
    [0.1, 0.01]
    """
    _check(density, rounds)
    return np.append(density ** (np.arange(1, rounds) / rounds), density)


def linear(density: float, *, rounds: int) -> np.ndarray:
    """The density 1 - (1 - d) t/T after round t: every round prunes the same number of weights.

    Args:
        density: the final density d, in (0, 1].
        rounds: the number of rounds T, at least 1.

    Returns:
        Array of `rounds` float64 densities, the last of them exactly `density`.

    Raises:
        ValueError: a density outside (0, 1], or fewer than one round.

    >>> linear(0.2, rounds=2).tolist()
    [0.6, 0.2]
    """
    _check(density, rounds)
    return np.append(1 - (1 - density) * np.arange(1, rounds) / rounds, density)


def check(schedule: np.ndarray) -> np.ndarray:
    """Returns the schedule as a float64 array, or raises if no search can follow it.

    Raises:
        ValueError: an empty schedule, densities outside (0, 1], or densities that rise.

    >>> check([0.5, 0.1]).tolist()
    [0.5, 0.1]
    """
    densities = np.asarray(schedule, np.float64)
    if densities.ndim != 1 or not densities.size:
        raise ValueError(
            f"schedule: got shape {densities.shape}, expected a list with the density after each "
            "round, such as schedules.exponential(0.05, rounds=20)."
        )
    if not np.all((densities > 0) & (densities <= 1)):
        raise ValueError(f"schedule: got {densities.tolist()}, expected densities in (0, 1].")
    if np.any(np.diff(densities) > 0):
        raise ValueError(
            f"schedule: got {densities.tolist()}, expected densities that never rise: masks only "
            "ever shrink."
        )
    return densities


def _check(density: float, rounds: int) -> None:
    if not 0.0 < density <= 1.0:
        raise ValueError(
            f"density: got {density!r}, expected the fraction of weights to keep, in (0, 1]. "
            "(For sparsity s pass 1 - s.)"
        )
    if not isinstance(rounds, numbers.Integral):
        raise TypeError(f"rounds: got {rounds!r}, expected an integer of at least 1.")
    if rounds < 1:
        raise ValueError(f"rounds: got {rounds!r}, expected at least 1.")
