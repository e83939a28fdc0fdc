"""The CPU cores of this machine, and how several processes share them."""

from __future__ import annotations

import os
from collections.abc import Sequence


def available() -> tuple[int, ...]:
    """Returns the cores that this process may run on; the numbers mean nothing but on Linux."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def share(cores: Sequence[int], num_processes: int) -> list[tuple[int, ...]]:
    """Deals cores out to processes; if there are too few, several processes get the same one.

    >>> share([0, 1, 2, 3, 4], 2), share([0, 1], 3)
    ([(0, 1, 2), (3, 4)], [(0,), (1,), (0,)])
    """
    if num_processes > len(cores):
        return [(cores[index % len(cores)],) for index in range(num_processes)]
    size, more = divmod(len(cores), num_processes)
    ends = [index * size + min(index, more) for index in range(num_processes + 1)]
    return [tuple(cores[start:end]) for start, end in zip(ends, ends[1:], strict=False)]
