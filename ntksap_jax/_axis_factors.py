"""Axes of arrays, as products of axes of the leaves that the arrays were made of.

A reshape may put two axes of a kernel together, and a later one take them apart: so an axis is kept
as its factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

Place = tuple[str, int]
"""An axis of a leaf: the leaf's path, and which axis."""

Axis = tuple[tuple[int, frozenset[Place]], ...]
"""The factors of an axis, the slowest first: their sizes, and the leaves' axes that they are."""

_ONE: tuple[int, frozenset[Place]] = (1, frozenset())


class Value(NamedTuple):
    """What is known of an array: its axes, and whether it depends on the network's inputs."""

    axes: tuple[Axis, ...]
    is_input: bool


def plain(shape: Sequence[int], is_input: bool = False) -> Value:
    """An array of which nothing more is known."""
    return Value(tuple(((n, frozenset()),) for n in shape), is_input)


def length(axis: Iterable[tuple[int, Any]]) -> int:
    return math.prod(size for size, _ in axis)


def places_of(axes: Iterable[Axis]) -> frozenset[Place]:
    """The leaves' axes that some axes are made of."""
    return frozenset().union(*(places for axis in axes for _, places in axis))


def forget(axis: Axis) -> Axis:
    return ((length(axis), frozenset()),)


def resize(axis: Axis, size: int) -> Axis:
    return axis if length(axis) == size else ((size, places_of([axis])),)


def resized(value: Value, shape: Sequence[int]) -> Value:
    return value._replace(axes=tuple(map(resize, value.axes, shape)))


def join(axes: Sequence[Axis]) -> Axis:
    """What an axis is that is several at once, as in a sum."""
    known = [axis for axis in axes if places_of([axis])] or axes[:1]
    if len({tuple(size for size, _ in axis) for axis in known}) > 1:
        return ((length(known[0]), places_of(known)),)
    return tuple(
        (factors[0][0], frozenset().union(*(places for _, places in factors)))
        for factors in zip(*known, strict=True)
    )


def joined(values: Sequence[Value]) -> Value:
    axes = tuple(map(join, zip(*(value.axes for value in values), strict=True)))
    return Value(axes, any(value.is_input for value in values))


# -- What operations make of the axes of their operand ---------------------------------------------


def dropped(eqn: Any, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    gone = eqn.params.get("axes", eqn.params.get("dimensions"))
    return tuple(axis for i, axis in enumerate(axes) if i not in gone)


def broadcast(eqn: Any, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    shape = eqn.params["shape"]
    result = list(plain(shape).axes)
    for place, axis in zip(eqn.params["broadcast_dimensions"], axes, strict=True):
        if length(axis) == shape[place]:
            result[place] = axis
    return tuple(result)


def reshape(eqn: Any, axes: tuple[Axis, ...]) -> tuple[Axis, ...] | None:
    """Deals the factors out anew; None where a factor would have to be cut between two entries."""
    order = eqn.params["dimensions"] or range(len(axes))
    factors = [factor for i in order for factor in axes[i] if factor != _ONE]
    result = []
    for size in eqn.params["new_sizes"]:
        axis: list[Any] = []
        while factors and (length(axis) < size or (size == 1 and not axis and factors[0][0] == 1)):
            whole, places = factors.pop(0)
            part = min(whole, size // length(axis))
            if not part or whole % part:
                return None
            axis.append((part, places))
            if part < whole:
                factors.insert(0, (whole // part, places))
            if size % length(axis):
                return None
        result.append(tuple(axis) or (_ONE,))
    return tuple(result)
