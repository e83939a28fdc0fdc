"""What products of arrays do with the axes of both."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from ntksap_jax import _axis_factors as factors
from ntksap_jax._axis_factors import Axis

Product = tuple[
    tuple[tuple[Axis, ...], tuple[Axis, ...]],
    tuple[list[Axis], list[Axis]],
    tuple[list[Axis], list[Axis]],
    list[Axis],
    Callable[..., tuple[Axis, ...]],
]
"""Axes of both operands that they share, that are summed over, and that stay; of positions in a
kernel; and a function that arranges what they share and what stays as the axes of the result."""


def _dot(eqn: Any, left: tuple[Axis, ...], right: tuple[Axis, ...]) -> Product:
    return _dot_by(eqn.params["dimension_numbers"], left, right)


def _dot_by(numbers: Any, left: tuple[Axis, ...], right: tuple[Axis, ...]) -> Product:
    summed, shared = numbers
    parts: list[Any] = []
    for axes, s, b in zip((left, right), summed, shared, strict=True):
        free = [axis for i, axis in enumerate(axes) if i not in (*s, *b)]
        parts.append((tuple(axes[i] for i in b), [axes[i] for i in s], free))
    (b0, s0, f0), (b1, s1, f1) = parts
    return (b0, b1), (s0, s1), (f0, f1), [], lambda both, ours, theirs: (*both, *ours, *theirs)


def _ragged_dot(eqn: Any, left: tuple[Axis, ...], right: tuple[Axis, ...]) -> Product:
    """Of rows with experts, each of which has some of the rows."""
    numbers, sizes = eqn.params["ragged_dot_dimension_numbers"], eqn.outvars[0].aval.shape
    experts = tuple(numbers.rhs_group_dimensions)
    summed, (rows, layers) = numbers.dot_dimension_numbers
    dot = _dot_by((summed, (rows, (*layers, *experts))), left, right)
    beside = factors.plain([factors.length(right[axis]) for axis in experts]).axes
    shared = ((*dot[0][0], *beside), dot[0][1])

    def arrange(both: list[Axis], ours: list[Axis], theirs: list[Axis]) -> tuple[Axis, ...]:
        result = (*both[: len(rows)], *ours, *theirs)
        return result if experts else factors.plain(sizes).axes

    return shared, *dot[1:4], arrange


def _convolution(eqn: Any, left: tuple[Axis, ...], right: tuple[Axis, ...]) -> Product:
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    (batch, features, *_), (out, into, *space) = numbers.lhs_spec, numbers.rhs_spec
    # `vmap` over kernels makes one convolution of groups, the layers the slowest factor of both.
    layers, own = _layers_in_groups(right[out], groups)
    beside = _layers_in_groups(left[features], groups)[0] if layers else ()
    sizes = eqn.outvars[0].aval.shape

    def arrange(both: list[Axis], kept: list[Axis], made: list[Axis]) -> tuple[Axis, ...]:
        result = list(factors.plain(sizes).axes)
        result[numbers.out_spec[0]] = kept[0]
        result[numbers.out_spec[1]] = (*itertools.chain(*both), *made[0])
        return tuple(result)

    shared = ((factors.resize(beside, factors.length(layers)),), (layers,)) if layers else ((), ())
    positions = [right[axis] for axis in space]
    return shared, ([left[features]], [right[into]]), ([left[batch]], [own]), positions, arrange


def _layers_in_groups(axis: Axis, groups: int) -> tuple[Axis, Axis]:
    """Splits an axis of features into the factors that are groups of their own, and the others."""
    count, size = 0, 1
    while count < len(axis) - 1 and groups % (size * axis[count][0]) == 0:
        if axis[count][1] & factors.places_of([axis[count + 1 :]]):
            break  # one axis of a leaf, split into groups and their features
        size, count = size * axis[count][0], count + 1
    return (axis[:count], axis[count:]) if groups > 1 else ((), axis)


def _conv2d(eqn: Any, left: tuple[Axis, ...], right: tuple[Axis, ...]) -> Product:
    """Of `ops`: NHWC and HWIO; a fifth axis in front of both runs over layers."""
    *both, batch, _, _, features = left
    *layers, height, width, into, out = right
    if eqn.primitive.name == "conv2d_input_gradient":  # In models that take derivatives.
        into, out = out, into
    rows, columns = eqn.outvars[0].aval.shape[-3:-1]
    space = factors.plain((rows, columns)).axes
    kept: tuple[list[Axis], list[Axis]] = ([batch], [out])
    return (
        (tuple(both), tuple(layers)),
        ([features], [into]),
        kept,
        [height, width],
        lambda both, kept, made: (*both, *kept, *space, *made),
    )


PRODUCTS: dict[str, Callable[..., Product]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "conv2d": _conv2d,
    "conv2d_input_gradient": _conv2d,
    "ragged_dot_general": _ragged_dot,
}
