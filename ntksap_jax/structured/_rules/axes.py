"""Operations along axes: sums, pools, slices, pads, joins."""

from __future__ import annotations

from typing import Any

import numpy as np

from ntksap_jax.structured._labels import Axis, Labels, Padded, Value
from ntksap_jax.structured._rules.common import (
    agreed,
    is_known,
    merge,
    number_of,
    same,
    total,
    uniform_total,
    without_axes,
)


def reduce(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    gone, sums = eqn.params["axes"], eqn.primitive.name in ("reduce_sum", "reduce_prod")
    [operand] = operands
    for axis in gone:
        labels.fix(operand.axes[axis], f"{place} takes all of them together")
    kept = [axis for axis in range(len(operand.axes)) if axis not in gone]
    removed = [total(operand.removed[axis]) if sums else operand.removed[axis] for axis in kept]
    number = uniform_total(operand.uniform) if sums else operand.uniform
    return [Value(tuple(operand.axes[axis] for axis in kept), tuple(removed), number)]


def accumulate(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    [operand] = operands
    along = eqn.params["axis"]
    labels.fix(operand.axes[along], f"{place} takes them together")
    return [without_axes(operand, [along], sums=eqn.primitive.name in ("cumsum", "cumprod"))]


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
    return [without_axes(operand, pooled, sums=sums)]


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
    return [without_axes(operands[0], cut, sums=False)]


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
    return [Value(axes, removed, operand.uniform, operand.leaf)]


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
    ignored = number is not None and bool(number == -np.inf)

    def padded(value: Any, axis: int) -> Any:
        if same(value, number):
            return value
        own = config[axis] != (0, 0, 0)
        if ignored and not own and is_known(value):
            return Padded(value)
        return agreed([value, number])

    removed = [padded(value, axis) for axis, value in enumerate(operand.removed)]
    result = number if same(operand.uniform, number) else None
    return [Value(tuple(axes), tuple(removed), result)]


def concatenate(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    sizes = [var.aval.shape for var in eqn.invars]
    return [_join(labels, operands, sizes, eqn.params["dimension"], place)]


def stack(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    along = eqn.params["axis"] % len(eqn.outvars[0].aval.shape)
    wider, sizes = [], []
    for operand, var in zip(operands, eqn.invars, strict=True):
        size, (axes, removed, *_) = var.aval.shape, operand
        wider.append(
            operand._replace(
                axes=(*axes[:along], None, *axes[along:]),
                removed=(*removed[:along], None, *removed[along:]),
            )
        )
        sizes.append((*size[:along], 1, *size[along:]))
    return [_join(labels, wider, sizes, along, place)]


def _join(
    labels: Labels, operands: list[Value], shapes: list[tuple[int, ...]], along: int, place: str
) -> Value:
    axes: list[Axis] = []
    for axis, size in enumerate(shapes[0]):
        if axis != along:
            axes.append(merge(labels, operands, axis, size, place))
        elif not any(isinstance(operand.axes[axis], np.ndarray) for operand in operands):
            axes.append(None)
        else:
            axes.append(np.concatenate(_parts(labels, operands, shapes, along, place)))

    def joined(axis: int) -> Any:
        parts = operands
        if axis == along:  # the others stay, or are 0 as well
            parts = [one for one in operands if isinstance(one.axes[axis], np.ndarray)]
        return agreed([number_of(operand, axis) for operand in parts])

    removed = tuple(
        joined(axis) if isinstance(kind, np.ndarray) else None for axis, kind in enumerate(axes)
    )
    return Value(tuple(axes), removed)


def _parts(
    labels: Labels, operands: list[Value], shapes: list[tuple[int, ...]], along: int, place: str
) -> list[np.ndarray]:
    """The channels of what is joined along an axis: new ones where there were none.

    These must stay, unless they are zeros, such as those of an option-A shortcut, beside what is 0
    where it is removed.
    """
    channels = [one for one in operands if isinstance(one.axes[along], np.ndarray)]
    zero = all(same(one.removed[along], 0) for one in channels)
    parts = []
    for operand, shape in zip(operands, shapes, strict=True):
        kind = operand.axes[along]
        if isinstance(kind, np.ndarray):
            parts.append(kind)
            continue
        parts.append(labels.new(shape[along]))
        if not (zero and same(operand.uniform, 0)):
            labels.fix(parts[-1], f"{place} joins them to what belongs to no channel")
    return parts


def tile(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    del labels, place
    [operand] = operands
    axes = tuple(
        np.tile(kind, times) if isinstance(kind, np.ndarray) else kind
        for kind, times in zip(operand.axes, eqn.params["reps"], strict=True)
    )
    return [Value(axes, operand.removed, operand.uniform)]


def gather(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    """Takes entries along some axes, such as rows of pixels; the other axes come through whole."""
    operand, numbers = operands[0], eqn.params["dimension_numbers"]
    before, sizes = eqn.invars[0].aval.shape, eqn.params["slice_sizes"]
    chosen = {*numbers.start_index_map, *numbers.operand_batching_dims}
    for axis in chosen:
        labels.fix(operand.axes[axis], f"{place} takes some of them by a computed index")
    for axis in operands[1].axes:
        labels.fix(axis, f"{place} takes them for places")
    axes: list[Axis] = [None] * len(eqn.outvars[0].aval.shape)
    removed: list[Any] = [None] * len(axes)
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    left = [axis for axis in range(len(before)) if axis not in gone]
    for source, target in zip(left, numbers.offset_dims, strict=True):
        if source not in chosen and sizes[source] == before[source]:
            axes[target], removed[target] = operand.axes[source], operand.removed[source]
        else:
            labels.fix(operand.axes[source], f"{place} takes some of them")
    return [Value(tuple(axes), tuple(removed))]


def iota(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    del labels, operands, place
    along, count = eqn.params["dimension"], len(eqn.params["shape"])
    return [Value(tuple(None if i == along else "free" for i in range(count)), (None,) * count)]
