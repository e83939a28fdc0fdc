"""Operations entry by entry, and what becomes of an entry whose channel is gone."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ntksap_jax.structured._labels import Labels, Value
from ntksap_jax.structured._rules.common import merge, number_of, same


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
    name = eqn.primitive.name
    if name == "mul" and any(number is not None and number == 0 for number in numbers):
        return np.zeros((), eqn.outvars[0].aval.dtype)
    if name == "div" and numbers[0] is not None and numbers[0] == 0:
        return np.zeros((), eqn.outvars[0].aval.dtype)
    if name == "select_n" and numbers[0] is None:
        cases = numbers[1:]
        return cases[0] if all(same(case, cases[0]) for case in cases) else None
    if name == "select_n":
        return numbers[1 + int(numbers[0])]
    if any(number is None for number in numbers):
        return None
    with jax.ensure_compile_time_eval():
        scalars = [
            np.asarray(number, var.aval.dtype)
            for number, var in zip(numbers, eqn.invars, strict=True)
        ]
        return np.asarray(eqn.primitive.bind(*scalars, **eqn.params))


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
