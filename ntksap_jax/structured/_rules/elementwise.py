"""Operations entry by entry, and what becomes of an entry whose channel is gone."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ntksap_jax.structured._labels import CHANGED, POSITIVE, Labels, Padded, Value
from ntksap_jax.structured._rules.common import is_known, merge, number_of, product_is_zero, same


def elementwise(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    shape = eqn.outvars[0].aval.shape
    axes = tuple(merge(labels, operands, axis, size, place) for axis, size in enumerate(shape))
    removed = tuple(
        _removed(eqn, operands, position) if isinstance(axis, np.ndarray) else None
        for position, axis in enumerate(axes)
    )
    number = _evaluate(eqn, [operand.uniform for operand in operands])
    if eqn.primitive.name == "convert_element_type":
        return [operands[0]._replace(removed=removed, uniform=number)]
    return [Value(axes, removed, number, layer=_with_bias(eqn, operands))]


_SINGULAR = {"rem", "pow", "sqrt", "rsqrt", "log", "log1p", "lgamma", "digamma"}
"""Operations that have no finite value for some numbers, all of them 0 or below."""
_BOUNDED = {"asin", "acos", "acosh", "atanh", "erf_inv"}
"""Those that have none for some positive numbers, too."""
_POSITIVE = {
    *("mul", "div", "add", "add_any", "max", "min", "pow", "sqrt", "rsqrt", "abs", "square"),
    *("integer_pow", "convert_element_type"),
}
"""Operations that make a positive number of positive ones."""


def _removed(eqn: Any, operands: list[Value], axis: int) -> Any:
    """What an entry becomes whose channel along an axis is removed."""
    numbers = [number_of(operand, axis) for operand in operands]
    result = _evaluate(eqn, numbers)
    changes = any(
        isinstance(operand.axes[axis], np.ndarray) and operand.removed[axis] is not None
        for operand in operands
        if operand.axes
    )
    if result is not None or not changes:
        return result
    return POSITIVE if _is_positive(eqn, numbers) else CHANGED


def _is_positive(eqn: Any, numbers: list[Any]) -> bool:
    """Whether the result is above 0, whatever the unknown numbers among the operands are."""
    name = eqn.primitive.name
    if not np.issubdtype(eqn.outvars[0].aval.dtype, np.inexact):
        return False  # rounded, it may be 0
    positive = (one is POSITIVE or (is_known(one) and one > 0) for one in numbers)
    return name in ("exp", "exp2") or (name in _POSITIVE and all(positive))


def _evaluate(eqn: Any, numbers: list[Any]) -> Any:
    """Computes an elementwise operation on single numbers, which may be unknown."""
    name, dtype = eqn.primitive.name, eqn.outvars[0].aval.dtype
    if any(isinstance(number, Padded) for number in numbers):
        numbers = _without_padding(name, numbers)
    if name == "select_n" and is_known(numbers[0]):
        return numbers[1 + int(numbers[0])]
    if not all(map(is_known, numbers)):
        if name == "select_n" and all(same(case, numbers[1]) for case in numbers[1:]):
            return numbers[1]
        if name == "mul" and product_is_zero(*numbers):
            return np.zeros((), dtype)
        if name == "div" and same(numbers[0], 0) and numbers[1] is not CHANGED:
            return np.zeros((), dtype)
        # What an infinity or a division by 0 may come to is as good as NaN, which no 0 undoes.
        ignored = {"max": -np.inf, "min": np.inf}.get(name)  # as the start of a softmax's maximum
        known = [number for number in numbers if is_known(number) and number != ignored]
        lost = not all(map(np.isfinite, known)) or _may_fail(eqn, numbers)
        return np.full((), np.nan, dtype) if lost and np.issubdtype(dtype, np.inexact) else None
    with jax.ensure_compile_time_eval():
        scalars = [
            np.asarray(number, var.aval.dtype)
            for number, var in zip(numbers, eqn.invars, strict=True)
        ]
        return np.asarray(eqn.primitive.bind(*scalars, **eqn.params))


def _may_fail(eqn: Any, numbers: list[Any]) -> bool:
    """Whether an operation on what removal makes of its operands may have no finite value."""
    name, changed = eqn.primitive.name, [number is CHANGED for number in numbers]
    if name == "div":
        return changed[1] or same(numbers[1], 0)
    if name == "integer_pow":
        return changed[0] and eqn.params["y"] < 0
    if name in _BOUNDED:
        return any(number is CHANGED or number is POSITIVE for number in numbers)
    return name in _SINGULAR and any(changed)


def _without_padding(name: str, numbers: list[Any]) -> list[Any]:
    """What counts where a maximum is taken that leaves no padding over; NaN for all else.

    (A window of nothing but padding has no value to speak of.)
    """
    padded = [number.number for number in numbers if isinstance(number, Padded)]
    others = [number for number in numbers if not isinstance(number, Padded)]
    known = all(map(is_known, (*padded, *others)))
    if name == "max" and known and (not others or max(others) >= max(padded)):
        return [*padded, *others]
    return [np.nan if isinstance(number, Padded) else number for number in numbers]


def _with_bias(eqn: Any, operands: list[Value]) -> str | None:
    """A layer's outputs and its own bias are its outputs."""
    if eqn.primitive.name not in ("add", "add_any"):
        return None
    for one, other in (operands, operands[::-1]):
        if one.layer and other.leaf and _module(other.leaf) == _module(f"params/{one.layer}"):
            return one.layer
    return None


def _module(path: str) -> str:
    return path.rpartition("/")[0]
