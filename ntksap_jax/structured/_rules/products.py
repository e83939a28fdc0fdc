"""Matrix products and convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ntksap_jax.structured._labels import CHANGED, Axis, Labels, Value
from ntksap_jax.structured._rules.common import (
    merge,
    number_of,
    product_is_zero,
    unknown,
    weighted_total,
)


def _contract(labels: Labels, left: Value, i: int, right: Value, j: int, place: str) -> None:
    """Ties two axes that a product sums over; what is removed must contribute 0 to the sum."""
    one, other = left.axes[i], right.axes[j]
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        labels.tie(one, other)
    elif one is None or other is None:
        for axis in (one, other):
            labels.fix(axis, f"{place} takes them together with what belongs to no channel")
        return
    if not product_is_zero(number_of(left, i), number_of(right, j)):
        for axis in (one, other):
            labels.fix(
                axis,
                f"{place} sums over them, and what a removed one leaves there is not 0: an "
                "activation f with f(0) != 0 comes before it, or normalisation by other "
                "statistics, or a division by 0",
            )


def dot(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    left, right = operands
    (sums_left, sums_right), (batch_left, batch_right) = eqn.params["dimension_numbers"]
    for i, j in zip(sums_left, sums_right, strict=True):
        _contract(labels, left, i, right, j, place)
    axes: list[Axis] = []
    removed: list[Any] = []
    sizes = eqn.invars[0].aval.shape
    for i, j in zip(batch_left, batch_right, strict=True):
        pair = [Value((left.axes[i],), ()), Value((right.axes[j],), ())]
        axes.append(merge(labels, pair, 0, sizes[i], place))
        pair_is_zero = product_is_zero(left.removed[i], right.removed[j])
        removed.append(np.zeros((), eqn.outvars[0].aval.dtype) if pair_is_zero else CHANGED)
    for operand, used in ((left, (*sums_left, *batch_left)), (right, (*sums_right, *batch_right))):
        for axis, kind in enumerate(operand.axes):
            if axis not in used:
                axes.append(kind)
                removed.append(weighted_total(operand.removed[axis]))
    return [Value(tuple(axes), tuple(removed))]


def convolve(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    numbers = eqn.params["dimension_numbers"]
    specs = (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
    groups = eqn.params["feature_group_count"]
    if eqn.params["batch_group_count"] != 1:
        return unknown(labels, eqn, operands, place)
    return _convolution(labels, eqn, operands, place, specs, groups)


def convolve_images(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    if len(operands[0].axes) != 4:
        return unknown(labels, eqn, operands, place)
    specs = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    return _convolution(labels, eqn, operands, place, specs, eqn.params["geometry"].groups)


def _convolution(
    labels: Labels, eqn: Any, operands: list[Value], place: str, specs: Any, groups: int
) -> list[Value]:
    inputs, kernel = operands
    (n, c, *pixels), (o, i, *window), (out_n, out_c, *_) = specs
    for axis in pixels:
        labels.fix(inputs.axes[axis], f"{place} takes neighbours together")
    for axis in window:
        labels.fix(kernel.axes[axis], f"{place} takes neighbours together")
    filters = kernel.axes[o]
    zero = weighted_total(kernel.removed[o])
    if groups == 1:
        _contract(labels, inputs, c, kernel, i, place)
    elif groups == eqn.invars[0].aval.shape[c] == eqn.invars[1].aval.shape[o]:
        pair = [Value((inputs.axes[c],), ()), Value((filters,), ())]
        filters = merge(labels, pair, 0, groups, place)
        both = product_is_zero(kernel.removed[o], inputs.removed[c])
        zero = np.zeros((), eqn.outvars[0].aval.dtype) if both else CHANGED
        labels.fix(kernel.axes[i], f"{place} has one for each group")
    else:
        for kind in (inputs.axes[c], filters, kernel.axes[i]):
            labels.fix(kind, f"{place} splits them into {groups} groups")
    axes: list[Axis] = [None] * len(inputs.axes)
    removed: list[Any] = [None] * len(inputs.axes)
    axes[out_n], removed[out_n] = inputs.axes[n], weighted_total(inputs.removed[n])
    axes[out_c], removed[out_c] = filters, zero
    return [Value(tuple(axes), tuple(removed))]


def unsummed(eqn: Any, operands: list[Value], kernel: int) -> list[Axis]:
    """The axes that a product with a kernel is repeated along: those of the other operand alone.

    Args:
        eqn: the product.
        operands: what its operands are.
        kernel: which of them is the kernel, 0 or 1.
    """
    axes = operands[1 - kernel].axes
    if eqn.primitive.name == "dot_general":
        summed, together = (pair[1 - kernel] for pair in eqn.params["dimension_numbers"])
        return [kind for axis, kind in enumerate(axes) if axis not in (*summed, *together)]
    if eqn.primitive.name == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        return [axes[(numbers.rhs_spec, numbers.lhs_spec)[kernel][0]]]
    return [axes[0]]
