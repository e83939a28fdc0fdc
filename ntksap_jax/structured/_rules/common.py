"""What the rules have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from ntksap_jax.structured._labels import CHANGED, POSITIVE, Axis, Labels, Value, opaque


def unknown(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    """An operation that cannot be followed: all channels that enter it stay."""
    for operand in operands:
        for axis in operand.axes:
            labels.fix(axis, f"{place} cannot be followed")
    return [opaque(getattr(var.aval, "shape", ())) for var in eqn.outvars]


def merge(labels: Labels, operands: list[Value], axis: int, size: int, place: str) -> Axis:
    """What an axis of the result is: operands are of its size there, or of size 1 and repeated."""
    given = [operand.axes[axis] for operand in operands if operand.axes]
    channels = [one for one in given if isinstance(one, np.ndarray)]
    for one in channels:
        if len(one) != size:
            labels.fix(one, f"{place} repeats a single one along an axis of {size}")
    channels = [one for one in channels if len(one) == size]
    positional = any(one is None for one in given)
    for other in channels[1:]:
        labels.tie(channels[0], other)
    if channels and positional:
        labels.fix(channels[0], f"{place} puts them together with what belongs to no channel")
    if channels:
        return channels[0]
    return None if positional else "free"


def number_of(operand: Value, axis: int) -> Any:
    """What an operand is where the channel of an index of that axis is removed."""
    if operand.axes and isinstance(operand.axes[axis], np.ndarray):
        return operand.removed[axis]
    return operand.uniform


def is_known(number: Any) -> bool:
    """Whether what an entry becomes is known."""
    return number is not None and number is not CHANGED and number is not POSITIVE


def same(left: Any, right: Any) -> bool:
    """Whether two numbers are known, and equal."""
    return is_known(left) and is_known(right) and bool(left == right)


def total(number: Any) -> Any:
    """A sum of so many of a number: known only if it is 0, or not finite, which gives NaN."""
    if not is_known(number) or number == 0:
        return number
    return (POSITIVE if number > 0 else CHANGED) if np.isfinite(number) else np.nan


def uniform_total(number: Any) -> Any:
    """The same of a number that all entries are, which no removal changes."""
    result = total(number)
    return result if is_known(result) else None


def weighted_total(number: Any) -> Any:
    """The same of products with unknown numbers, which may cancel each other out."""
    result = total(number)
    return CHANGED if result is POSITIVE else result


def agreed(numbers: list[Any]) -> Any:
    """The number that all are; where they differ `CHANGED`, but NaN if one is not finite."""
    if all(number is None for number in numbers):
        return None
    if all(same(number, numbers[0]) for number in numbers):
        return numbers[0]
    finite = all(np.isfinite(number) for number in numbers if is_known(number))
    return CHANGED if finite else np.nan


def product_is_zero(*numbers: Any) -> bool:
    """Whether a product is 0 whatever its unknown factors are; those are taken to be finite."""
    known = list(filter(is_known, numbers))
    return any(number == 0 for number in known) and all(map(np.isfinite, known))


def without_axes(operand: Value, gone: Any, *, sums: bool) -> Value:
    """The same array after the entries along some axes were summed up, or moved."""
    axes = tuple(None if axis in gone else kind for axis, kind in enumerate(operand.axes))
    if not sums:
        return Value(axes, operand.removed, operand.uniform)
    return Value(axes, tuple(map(total, operand.removed)), uniform_total(operand.uniform))
