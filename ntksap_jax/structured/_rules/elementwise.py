"""Operations entry by entry, and what becomes of an entry whose channel is gone."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ntksap_jax.structured._labels import Labels, Padded, Value
from ntksap_jax.structured._rules.common import merge, number_of, product_is_zero, same


def elementwise(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    shape = eqn.outvars[0].aval.shape
    axes = tuple(merge(labels, operands, axis, size, place) for axis, size in enumerate(shape))
    removed = tuple(
        _evaluate(eqn, [number_of(operand, position) for operand in operands])
        if isinstance(axis, np.ndarray)
        else None
        for position, axis in enumerate(axes)
    )
    number = _evaluate(eqn, [operand.uniform for operand in operands])
    if eqn.primitive.name == "convert_element_type":
        return [operands[0]._replace(removed=removed, uniform=number)]
    return [Value(axes, removed, number, layer=_with_bias(eqn, operands))]


def _evaluate(eqn: Any, numbers: list[Any]) -> Any:
    """Computes an elementwise operation on single numbers, None for those that are not known."""
    name, dtype = eqn.primitive.name, eqn.outvars[0].aval.dtype
    if any(isinstance(number, Padded) for number in numbers):
        numbers = _without_padding(name, numbers)
    if name == "select_n" and numbers[0] is not None:
        return numbers[1 + int(numbers[0])]
    if any(number is None for number in numbers):
        if name == "select_n" and all(same(case, numbers[1]) for case in numbers[1:]):
            return numbers[1]
        if name == "mul" and product_is_zero(*numbers):
            return np.zeros((), dtype)
        if name == "div" and same(numbers[0], 0):
            return np.zeros((), dtype)
        # What an infinity or a division by 0 may come to is as good as NaN, which no 0 undoes.
        ignored = {"max": -np.inf, "min": np.inf}.get(name)  # as the start of a softmax's maximum
        known = [number for number in numbers if number is not None and number != ignored]
        lost = not all(map(np.isfinite, known)) or (name == "div" and same(numbers[1], 0))
        return np.full((), np.nan, dtype) if lost and np.issubdtype(dtype, np.inexact) else None
    with jax.ensure_compile_time_eval():
        scalars = [
            np.asarray(number, var.aval.dtype)
            for number, var in zip(numbers, eqn.invars, strict=True)
        ]
        return np.asarray(eqn.primitive.bind(*scalars, **eqn.params))


def _without_padding(name: str, numbers: list[Any]) -> list[Any]:
    """What counts where a maximum is taken that leaves no padding over; NaN for all else.

    (A window of nothing but padding has no value to speak of.)
    """
    padded = [number.number for number in numbers if isinstance(number, Padded)]
    others = [number for number in numbers if not isinstance(number, Padded)]
    known = all(number is not None for number in (*padded, *others))
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
