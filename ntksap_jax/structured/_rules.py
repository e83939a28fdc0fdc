"""What each operation does to the channels of its operands.

Where an operation cannot be followed, the channels that enter it must stay, and what comes out
belongs to no channel. So nothing that is missing here can make a result wrong: less can be removed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ntksap_jax.structured._labels import Axis, Labels, Value, opaque

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
    place = f"operation `{name}` at {where or 'the top level'}"
    results = _RULES.get(name, _unknown)(labels, eqn, operands, place)
    return [_tidy(result, var) for result, var in zip(results, eqn.outvars, strict=True)]


def _tidy(value: Value, var: Any) -> Value:
    """An axis of size 1 without a channel is constant along itself."""
    shape = getattr(var.aval, "shape", ())
    axes = tuple(
        "free" if kind is None and size == 1 else kind
        for kind, size in zip(value.axes, shape, strict=True)
    )
    return value._replace(axes=axes)


def _unknown(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    for operand in operands:
        for axis in operand.axes:
            labels.fix(axis, f"{place} cannot be followed")
    return [opaque(getattr(var.aval, "shape", ())) for var in eqn.outvars]


# -- Numbers: what becomes of an entry whose channel is gone -------------------------------------


def _evaluate(eqn: Any, numbers: list[Any]) -> Any:
    """Computes an elementwise operation on single numbers, None for those that are not known."""
    name = eqn.primitive.name
    if name == "mul" and any(number is not None and number == 0 for number in numbers):
        return np.zeros((), eqn.outvars[0].aval.dtype)
    if name == "div" and numbers[0] is not None and numbers[0] == 0:
        return np.zeros((), eqn.outvars[0].aval.dtype)
    if name == "select_n" and numbers[0] is None:
        cases = numbers[1:]
        return cases[0] if all(_same(case, cases[0]) for case in cases) else None
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


def _same(left: Any, right: Any) -> bool:
    return left is not None and right is not None and bool(left == right)


def _if_zero(number: Any) -> Any:
    """A sum of so many of a number: known only if it is 0."""
    return number if number is not None and number == 0 else None


# -- Operations entry by entry -------------------------------------------------------------------


def _elementwise(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    shape = eqn.outvars[0].aval.shape
    axes = tuple(_merge(labels, operands, axis, size, place) for axis, size in enumerate(shape))
    removed = tuple(
        _evaluate(eqn, [_number(operand, position) for operand in operands])
        if isinstance(axis, np.ndarray)
        else None
        for position, axis in enumerate(axes)
    )
    number = _evaluate(eqn, [operand.uniform for operand in operands])
    if eqn.primitive.name == "convert_element_type":
        return [operands[0]._replace(removed=removed, uniform=number)]
    return [Value(axes, removed, number, layer=_with_bias(eqn, operands))]


def _merge(labels: Labels, operands: list[Value], axis: int, size: int, place: str) -> Axis:
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


def _number(operand: Value, axis: int) -> Any:
    """What an operand is where the channel of an index of that axis is removed."""
    if operand.axes and isinstance(operand.axes[axis], np.ndarray):
        return operand.removed[axis]
    return operand.uniform


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


# -- Operations along axes -----------------------------------------------------------------------


def _reduce(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    gone, sums = eqn.params["axes"], eqn.primitive.name in ("reduce_sum", "reduce_prod")
    [operand] = operands
    for axis in gone:
        labels.fix(operand.axes[axis], f"{place} takes all of them together")
    kept = [axis for axis in range(len(operand.axes)) if axis not in gone]
    removed = [_if_zero(operand.removed[axis]) if sums else operand.removed[axis] for axis in kept]
    number = _if_zero(operand.uniform) if sums else operand.uniform
    return [Value(tuple(operand.axes[axis] for axis in kept), tuple(removed), number)]


def _accumulate(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    [operand] = operands
    along = eqn.params["axis"]
    labels.fix(operand.axes[along], f"{place} takes them together")
    return [_without_axes(operand, [along], _if_zero)]


def _pool(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
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
    return [_without_axes(operand, pooled, _if_zero if sums else lambda number: number)]


def _without_axes(operand: Value, gone: Any, numbers: Callable[[Any], Any]) -> Value:
    """The same array after the entries along some axes were mixed or moved."""
    axes = tuple(None if axis in gone else kind for axis, kind in enumerate(operand.axes))
    return Value(axes, tuple(map(numbers, operand.removed)), numbers(operand.uniform))


def _slice(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    del labels, place
    [operand] = operands
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or (1,) * len(starts)
    axes = tuple(
        axis[start:limit:step] if isinstance(axis, np.ndarray) else axis
        for axis, start, limit, step in zip(operand.axes, starts, limits, steps, strict=True)
    )
    return [Value(axes, operand.removed, operand.uniform)]


def _dynamic_slice(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    sizes, before = eqn.params["slice_sizes"], eqn.invars[0].aval.shape
    cut = [axis for axis, size in enumerate(sizes) if size != before[axis]]
    for axis in cut:
        labels.fix(operands[0].axes[axis], f"{place} takes some of them by a computed index")
    return [_without_axes(operands[0], cut, lambda number: number)]


def _split(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
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


def _reverse(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    del labels, place
    [operand] = operands
    axes = tuple(
        kind[::-1] if isinstance(kind, np.ndarray) and axis in eqn.params["dimensions"] else kind
        for axis, kind in enumerate(operand.axes)
    )
    return [Value(axes, operand.removed, operand.uniform)]


def _transpose(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    del labels, place
    [operand] = operands
    order = eqn.params["permutation"]
    axes, removed = (tuple(one[axis] for axis in order) for one in (operand.axes, operand.removed))
    return [Value(axes, removed, operand.uniform)]


def _pad(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
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
        return value if _same(value, number) or (ignored and not own) else None

    removed = [padded(value, axis) for axis, value in enumerate(operand.removed)]
    result = number if _same(operand.uniform, number) else None
    return [Value(tuple(axes), tuple(removed), result)]


def _concatenate(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    along, shape = eqn.params["dimension"], eqn.outvars[0].aval.shape
    axes: list[Axis] = []
    for axis, size in enumerate(shape):
        if axis != along:
            axes.append(_merge(labels, operands, axis, size, place))
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
        numbers = [_number(operand, axis) for operand in parts]
        return numbers[0] if all(_same(number, numbers[0]) for number in numbers) else None

    removed = tuple(
        joined(axis) if isinstance(kind, np.ndarray) else None for axis, kind in enumerate(axes)
    )
    return [Value(tuple(axes), removed)]


# -- Shapes --------------------------------------------------------------------------------------


def _broadcast(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    operand, before = operands[0], eqn.invars[0].aval.shape
    shape = eqn.outvars[0].aval.shape
    axes: list[Axis] = ["free"] * len(shape)
    removed: list[Any] = [None] * len(shape)
    for axis, target in enumerate(eqn.params["broadcast_dimensions"]):
        kind = operand.axes[axis]
        if before[axis] == shape[target]:
            axes[target], removed[target] = kind, operand.removed[axis]
        else:
            labels.fix(kind, f"{place} repeats a single one along an axis of {shape[target]}")
    return [Value(tuple(axes), tuple(removed), operand.uniform, operand.leaf, operand.layer)]


def _squeeze(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    [operand] = operands
    gone = eqn.params["dimensions"]
    for axis in gone:
        labels.fix(operand.axes[axis], f"{place} takes a single one out")
    kept = [axis for axis in range(len(operand.axes)) if axis not in gone]
    axes, removed = (tuple(one[axis] for axis in kept) for one in (operand.axes, operand.removed))
    return [Value(axes, removed, operand.uniform, operand.leaf)]


def _reshape(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    operand, old = operands[0], eqn.invars[0].aval.shape
    new = eqn.outvars[0].aval.shape
    if eqn.params.get("dimensions") is not None or 0 in old:
        return _unknown(labels, eqn, operands, place)
    axes: list[Axis] = ["free" if size == 1 else None for size in new]
    removed: list[Any] = [None] * len(new)
    for sources, targets in _runs(old, new):
        channels = [axis for axis in sources if isinstance(operand.axes[axis], np.ndarray)]
        wide = [axis for axis in targets if new[axis] > 1]
        if not channels:
            if all(operand.axes[axis] == "free" for axis in sources):
                for axis in targets:
                    axes[axis] = "free"
            continue
        spread = _spread(operand.axes[channels[0]], channels[0], sources, old)
        # One channel axis, and a run that ends in one axis, or in one along which alone it varies.
        found = _varying(spread.reshape([new[axis] for axis in targets]))
        if len(channels) > 1 or len(found) > 1 or not targets:
            for axis in channels:
                labels.fix(operand.axes[axis], f"{place} takes them apart or mixes them")
            continue
        target = targets[found[0]] if found else (wide or targets)[-1]
        inside = tuple(slice(None) if axis == target else 0 for axis in targets)
        axes[target] = spread.reshape([new[axis] for axis in targets])[inside]
        removed[target] = operand.removed[channels[0]]
        if not found and new[target] != old[channels[0]]:
            labels.fix(axes[target], f"{place} repeats a single one")
    layer = operand.layer if old and new and old[-1] == new[-1] else None
    return [Value(tuple(axes), tuple(removed), operand.uniform, operand.leaf, layer)]


def _runs(old: Any, new: Any) -> list[tuple[list[int], list[int]]]:
    """Splits the axes of a reshape into the shortest runs of equal numbers of entries.

    From the last axis on, which is where channels are: a vector of one goes to the last of (1, 1).
    """
    runs: list[tuple[list[int], list[int]]] = []
    i, j = len(old), len(new)
    while i or j:
        sources: list[int] = []
        targets: list[int] = []
        left = right = 1
        while (not sources and i) or (left < right) or (not targets and j) or (right < left):
            if i and (not sources or left < right):
                i -= 1
                sources, left = [i, *sources], left * old[i]
            else:
                j -= 1
                targets, right = [j, *targets], right * new[j]
        runs.append((sources, targets))
    return runs


def _spread(axis: Any, position: int, sources: list[int], shape: Any) -> np.ndarray:
    """The channel of every entry of a run of axes, of which one is a channel axis."""
    sizes = [shape[one] for one in sources]
    single = [size if one == position else 1 for one, size in zip(sources, sizes, strict=True)]
    return np.broadcast_to(axis.reshape(single), sizes)


def _varying(numbers: np.ndarray) -> list[int]:
    """The axes along which an array is not constant."""
    return [
        axis
        for axis in range(numbers.ndim)
        if not np.array_equal(numbers, np.broadcast_to(numbers.take([0], axis), numbers.shape))
    ]


# -- Products ------------------------------------------------------------------------------------


def _contract(labels: Labels, left: Value, i: int, right: Value, j: int, place: str) -> None:
    """Ties two axes that a product sums over; what is removed must contribute 0 to the sum."""
    one, other = left.axes[i], right.axes[j]
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        labels.tie(one, other)
    elif one is None or other is None:
        for axis in (one, other):
            labels.fix(axis, f"{place} takes them together with what belongs to no channel")
        return
    if _if_zero(_number(left, i)) is None and _if_zero(_number(right, j)) is None:
        for axis in (one, other):
            labels.fix(
                axis,
                f"{place} sums over them, and what a removed one leaves there is not 0: an "
                "activation f with f(0) != 0 comes before it, or normalisation by other statistics",
            )


def _dot(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    left, right = operands
    (sums_left, sums_right), (batch_left, batch_right) = eqn.params["dimension_numbers"]
    for i, j in zip(sums_left, sums_right, strict=True):
        _contract(labels, left, i, right, j, place)
    axes: list[Axis] = []
    removed: list[Any] = []
    sizes = eqn.invars[0].aval.shape
    for i, j in zip(batch_left, batch_right, strict=True):
        pair = [Value((left.axes[i],), ()), Value((right.axes[j],), ())]
        axes.append(_merge(labels, pair, 0, sizes[i], place))
        zeros = [_if_zero(left.removed[i]), _if_zero(right.removed[j])]
        removed.append(next((zero for zero in zeros if zero is not None), None))
    for operand, used in ((left, (*sums_left, *batch_left)), (right, (*sums_right, *batch_right))):
        for axis, kind in enumerate(operand.axes):
            if axis not in used:
                axes.append(kind)
                removed.append(_if_zero(operand.removed[axis]))
    free = [axis for axis in range(len(right.axes)) if axis not in (*sums_right, *batch_right)]
    filters_last = free == [len(right.axes) - 1]
    return [Value(tuple(axes), tuple(removed), layer=_kernel(right.leaf) if filters_last else None)]


def _convolve(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    numbers = eqn.params["dimension_numbers"]
    specs = (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
    groups = eqn.params["feature_group_count"]
    if eqn.params["batch_group_count"] != 1:
        return _unknown(labels, eqn, operands, place)
    return _convolution(labels, eqn, operands, place, specs, groups)


def _convolve_images(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    if len(operands[0].axes) != 4:
        return _unknown(labels, eqn, operands, place)
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
    zero = _if_zero(kernel.removed[o])
    if groups == 1:
        _contract(labels, inputs, c, kernel, i, place)
    elif groups == eqn.invars[0].aval.shape[c] == eqn.invars[1].aval.shape[o]:
        pair = [Value((inputs.axes[c],), ()), Value((filters,), ())]
        filters = _merge(labels, pair, 0, groups, place)
        zero = zero if zero is not None else _if_zero(inputs.removed[c])
        labels.fix(kernel.axes[i], f"{place} has one for each group")
    else:
        for kind in (inputs.axes[c], filters, kernel.axes[i]):
            labels.fix(kind, f"{place} splits them into {groups} groups")
    axes: list[Axis] = [None] * len(inputs.axes)
    removed: list[Any] = [None] * len(inputs.axes)
    axes[out_n], removed[out_n] = inputs.axes[n], _if_zero(inputs.removed[n])
    axes[out_c], removed[out_c] = filters, zero
    layer = kernel.leaf if o == len(kernel.axes) - 1 else None
    return [Value(tuple(axes), tuple(removed), layer=_kernel(layer))]


def _kernel(leaf: str | None) -> str | None:
    """The path in the parameters of a leaf that is one."""
    return leaf.removeprefix("params/") if leaf and leaf.startswith("params/") else None


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_CUMULATIVE, _accumulate),
    **dict.fromkeys(_WINDOWS, _pool),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv2d": _convolve_images,
    "conv_general_dilated": _convolve,
    "dot_general": _dot,
    "dynamic_slice": _dynamic_slice,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
