"""What each operation does to the channels of its operands.

Where an operation cannot be followed, the channels that enter it must stay, and what comes out
belongs to no channel. So nothing that is missing here can make a result wrong: less can be removed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ntksap_jax.structured._labels import Labels, Padded, Value
from ntksap_jax.structured._rules import axes, elementwise, products, shapes
from ntksap_jax.structured._rules.common import unknown

unsummed = products.unsummed

_ARRANGEMENTS = {"slice", "split", "squeeze", "reshape", "transpose", "rev", "broadcast_in_dim"}

Rule = Callable[[Labels, Any, list[Value], str], list[Value]]

_ELEMENTWISE = {
    *("add", "add_any", "sub", "mul", "div", "rem", "max", "min", "pow", "integer_pow", "square"),
    *("exp", "exp2", "log", "log1p", "expm1", "sqrt", "rsqrt", "cbrt", "logistic", "erf", "erfc"),
    *("sin", "cos", "tan", "tanh", "asin", "acos", "atan", "atan2", "sinh", "cosh", "asinh"),
    *("acosh", "atanh", "erf_inv", "lgamma", "digamma", "abs", "neg", "sign", "floor", "ceil"),
    *("round", "is_finite", "not", "and", "or", "xor", "eq", "ne", "lt", "le", "gt", "ge"),
    *("select_n", "clamp", "convert_element_type", "nextafter"),
}
_IDENTITY = {
    *("copy", "copy_p", "stop_gradient", "optimization_barrier", "sharding_constraint"),
    *("reduce_precision", "mesh_cast", "reshard", "name"),
}
_REDUCTIONS = {"reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_and", "reduce_or"}
_CUMULATIVE = {"cumsum", "cumprod", "cummax", "cummin"}
_WINDOWS = {"reduce_window_sum", "reduce_window_max", "reduce_window_min"}


def apply(labels: Labels, eqn: Any, operands: list[Value], where: str) -> list[Value]:
    """Returns what the operation's results are, and notes in `labels` what it ties and fixes.

    Args:
        labels: the channels.
        eqn: the operation, an equation of a jaxpr that calls no other.
        operands: what its arguments are.
        where: path of the module that it stands in, for messages.
    """
    name = eqn.primitive.name
    if name in _IDENTITY:
        return operands
    if name not in _ARRANGEMENTS | _ELEMENTWISE:
        ignores = name in ("reduce_max", "reduce_window_max")
        operands = [_without_padding(operand, ignores) for operand in operands]
    place = f"operation `{name}` at {where or 'the top level'}"
    results = _RULES.get(name, unknown)(labels, eqn, operands, place)
    return [_tidy(result, var) for result, var in zip(results, eqn.outvars, strict=True)]


def _without_padding(operand: Value, ignores: bool) -> Value:
    """The same without the minus infinity that a maximum ignores; for all else it gives NaN."""

    def settle(number: Any) -> Any:
        if not isinstance(number, Padded):
            return number
        return number.number if ignores else np.nan

    return operand._replace(removed=tuple(map(settle, operand.removed)))


def consumed(eqn: Any) -> list[tuple[tuple[int, int], ...]]:
    """The axes whose lengths matter beside the shapes of the results.

    Those that are summed over; all, where the operation cannot be followed. Each is a pair
    (operand, axis), or two for the same length.
    """
    name = eqn.primitive.name
    if name in _REDUCTIONS:
        return [((0, axis),) for axis in eqn.params["axes"]]
    if name == "dot_general":
        left, right = eqn.params["dimension_numbers"][0]
        return [((0, i), (1, j)) for i, j in zip(left, right, strict=True)]
    if name in _RULES or name in _IDENTITY:
        return []
    shapes = [getattr(var.aval, "shape", ()) for var in eqn.invars]
    return [((place, axis),) for place, shape in enumerate(shapes) for axis in range(len(shape))]


def _tidy(value: Value, var: Any) -> Value:
    """An axis of size 1 without a channel is constant along itself."""
    shape = getattr(var.aval, "shape", ())
    kinds = tuple(
        "free" if kind is None and size == 1 else kind
        for kind, size in zip(value.axes, shape, strict=True)
    )
    return value._replace(axes=kinds)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, elementwise.elementwise),
    **dict.fromkeys(_REDUCTIONS, axes.reduce),
    **dict.fromkeys(_CUMULATIVE, axes.accumulate),
    **dict.fromkeys(_WINDOWS, axes.pool),
    "broadcast_in_dim": shapes.broadcast,
    "concatenate": axes.concatenate,
    "conv2d": products.convolve_images,
    "conv_general_dilated": products.convolve,
    "dot_general": products.dot,
    "dynamic_slice": axes.dynamic_slice,
    "gather": axes.gather,
    "iota": axes.iota,
    "pad": axes.pad,
    "reshape": shapes.reshape,
    "rev": axes.reverse,
    "slice": axes.slice_,
    "split": axes.split,
    "squeeze": shapes.squeeze,
    "stack": axes.stack,
    "tile": axes.tile,
    "transpose": axes.transpose,
}
