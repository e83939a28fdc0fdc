"""Operations along axes: sums, pools, slices, pads, joins."""

from __future__ import annotations

from typing import Any

import numpy as np

from ntksap_jax.structured._labels import Axis, Labels, Value
from ntksap_jax.structured._rules.common import if_zero, merge, number_of, same, without_axes


def reduce(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    gone, sums = eqn.params["axes"], eqn.primitive.name in ("reduce_sum", "reduce_prod")
    [operand] = operands
    for axis in gone:
        labels.fix(operand.axes[axis], f"{place} takes all of them together")
    kept = [axis for axis in range(len(operand.axes)) if axis not in gone]
    removed = [if_zero(operand.removed[axis]) if sums else operand.removed[axis] for axis in kept]
    number = if_zero(operand.uniform) if sums else operand.uniform
    return [Value(tuple(operand.axes[axis] for axis in kept), tuple(removed), number)]


def accumulate(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    [operand] = operands
    along = eqn.params["axis"]
    labels.fix(operand.axes[along], f"{place} takes them together")
    return [without_axes(operand, [along], if_zero)]


def pool(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    operand, params = operands[0], eqn.params
    trivial = [
        window == stride == base == dilation == 1 and tuple(padding) == (0, 0)
        for window, stride, base, dilation, padding in zip(
            params["window_dimensions"],
            params["window_strides"],
            params["base_dilation"],
            params["window_dilation"],
            params["padding"],
            strict=True,
        )
    ]
    pooled = [axis for axis, nothing in enumerate(trivial) if not nothing]
    for axis in pooled:
        labels.fix(operand.axes[axis], f"{place} takes neighbours together")
    # A maximum ignores its padding; a window of nothing but padding has no value to speak of.
    sums = eqn.primitive.name == "reduce_window_sum"
    return [without_axes(operand, pooled, if_zero if sums else lambda number: number)]


def slice_(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    del labels, place
    [operand] = operands
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or (1,) * len(starts)
    axes = tuple(
        axis[start:limit:step] if isinstance(axis, np.ndarray) else axis
        for axis, start, limit, step in zip(operand.axes, starts, limits, steps, strict=True)
    )
    return [Value(axes, operand.removed, operand.uniform)]


def dynamic_slice(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    sizes, before = eqn.params["slice_sizes"], eqn.invars[0].aval.shape
    cut = [axis for axis, size in enumerate(sizes) if size != before[axis]]
    for axis in cut:
        labels.fix(operands[0].axes[axis], f"{place} takes some of them by a computed index")
    return [without_axes(operands[0], cut, lambda number: number)]


def split(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    del labels, place
    [operand] = operands
    along, parts = eqn.params["axis"], []
    start = 0
    for size in eqn.params["sizes"]:
        axes = list(operand.axes)
        if isinstance(axes[along], np.ndarray):
            axes[along] = axes[along][start : start + size]
        start += size
        parts.append(Value(tuple(axes), operand.removed, operand.uniform))
    return parts


def reverse(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    del labels, place
    [operand] = operands
    axes = tuple(
        kind[::-1] if isinstance(kind, np.ndarray) and axis in eqn.params["dimensions"] else kind
        for axis, kind in enumerate(operand.axes)
    )
    return [Value(axes, operand.removed, operand.uniform)]


def transpose(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    del labels, place
    [operand] = operands
    order = eqn.params["permutation"]
    axes, removed = (tuple(one[axis] for axis in order) for one in (operand.axes, operand.removed))
    return [Value(axes, removed, operand.uniform)]


def pad(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    """New indices of a channel axis are new channels, such as the zeros of an option-A shortcut."""
    operand, filling = operands
    number = filling.uniform
    config = [tuple(map(int, sides)) for sides in eqn.params["padding_config"]]
    axes = list(operand.axes)
    for axis, (before, after, inside) in enumerate(config):
        kind = axes[axis]
        if (before, after, inside) == (0, 0, 0):
            continue
        if isinstance(kind, np.ndarray) and min(before, after) >= 0 and inside == 0:
            axes[axis] = np.concatenate([labels.new(before), kind, labels.new(after)])
            continue
        labels.fix(kind, f"{place} puts others between them or cuts some off")
        axes[axis] = None
    # Minus infinity is for the maximum that follows: no window is without a true entry.
    ignored = number is not None and bool(np.isneginf(number))

    def padded(value: Any, axis: int) -> Any:
        own = config[axis] != (0, 0, 0)
        return value if same(value, number) or (ignored and not own) else None

    removed = [padded(value, axis) for axis, value in enumerate(operand.removed)]
    result = number if same(operand.uniform, number) else None
    return [Value(tuple(axes), tuple(removed), result)]


def concatenate(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    along, shape = eqn.params["dimension"], eqn.outvars[0].aval.shape
    axes: list[Axis] = []
    for axis, size in enumerate(shape):
        if axis != along:
            axes.append(merge(labels, operands, axis, size, place))
        elif not any(isinstance(operand.axes[axis], np.ndarray) for operand in operands):
            axes.append(None)
        else:
            parts = []
            for operand, var in zip(operands, eqn.invars, strict=True):
                kind = operand.axes[axis]
                if isinstance(kind, np.ndarray):
                    parts.append(kind)
                    continue
                parts.append(labels.new(var.aval.shape[axis]))
                if kind is None:
                    labels.fix(parts[-1], f"{place} joins them to what belongs to no channel")
            axes.append(np.concatenate(parts))

    def joined(axis: int) -> Any:
        parts = operands
        if axis == along:  # the others have no channel that could go
            parts = [one for one in operands if one.axes[axis] is not None]
        numbers = [number_of(operand, axis) for operand in parts]
        return numbers[0] if all(same(number, numbers[0]) for number in numbers) else None

    removed = tuple(
        joined(axis) if isinstance(kind, np.ndarray) else None for axis, kind in enumerate(axes)
    )
    return [Value(tuple(axes), removed)]
