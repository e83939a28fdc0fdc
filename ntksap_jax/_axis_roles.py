"""Which axes of a kernel are its inputs and its outputs, read off the program that uses it.

A kernel is followed through whatever rearranges or rescales it to its product with something that
depends on the network's inputs. The axes summed over there are inputs, those that stay are outputs,
and those that both sides share, as `vmap` makes them, run over separate layers, as does the axis
that a `scan` goes along. So models of all frameworks are read alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ntksap_jax import _jaxprs

Place = tuple[str, int]
"""An axis of a leaf: the leaf's path, and which axis."""

Axis = tuple[tuple[int, frozenset[Place]], ...]
"""The factors of an axis, the slowest first: their sizes, and the leaves' axes that they are."""

UNKNOWN = "?"


class Value(NamedTuple):
    """What is known of an array: its axes, and whether it depends on the network's inputs."""

    axes: tuple[Axis, ...]
    is_input: bool


def read(
    program: Any, shapes: Mapping[str, tuple[int, ...]], followed: Collection[str]
) -> dict[str, str]:
    """Returns a letter for each axis of some leaves: `s`, `p`, `i`, `o` (see `axes`) or `?`.

    Args:
        program: a closed jaxpr, whose arguments are the leaves in this order, and the inputs.
        shapes: of all leaves, by path.
        followed: paths of the leaves to read; all others count as inputs.
    """
    roles = _Roles(shapes)
    arguments = [
        Value(tuple(((n, frozenset({(path, i)})),) for i, n in enumerate(shape)), is_input=False)
        if path in followed
        else _plain(shape, is_input=True)
        for path, shape in shapes.items()
    ]
    inputs = program.jaxpr.invars[len(arguments) :]
    arguments += [_plain(var.aval.shape, is_input=True) for var in inputs]
    roles.walk(program, arguments)
    return {path: roles.letters(path) for path in followed}


class _Roles:
    """What a program has been found to do with the axes of its leaves."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._found: dict[Place, set[str]] = {}
        self._beside: set[Place] = set()  # axes of outputs that run along other kernels' layers

    def letters(self, path: str) -> str:
        places = [(path, axis) for axis in range(len(self._shapes[path]))]
        found = [self._found.get(place, set()) for place in places]
        # Layers side by side, which `vmap` makes over the same inputs, look like outputs at first.
        beside = [
            place in self._beside and "o" in marks
            for place, marks in zip(places, found, strict=True)
        ]
        own = [marks for marks, b in zip(found, beside, strict=True) if not b]
        if {"o"} in own:
            found = [m - {"o"} | {"s"} if b else m for m, b in zip(found, beside, strict=True)]
        return "".join(next(iter(m)) if len(m) == 1 else UNKNOWN for m in found)

    def walk(self, jaxpr: Any, arguments: list[Value]) -> list[Value]:
        return _jaxprs.walk(
            jaxpr, arguments, self._step, constant=lambda value: _plain(np.shape(value))
        )

    def _mark(self, letter: str, axes: Iterable[Axis]) -> None:
        for place in _places(axes):
            self._found.setdefault(place, set()).add(letter)

    def _step(self, eqn: Any, operands: list[Value], where: str) -> list[Value] | None:
        name = eqn.primitive.name
        if _jaxprs.called(eqn) is not None:
            return None
        if name == "scan":
            return self._scan(eqn, operands)
        if name == "optimization_barrier":
            return operands
        if name == "cond":
            branches = [self.walk(branch, operands[1:]) for branch in eqn.params["branches"]]
            return [_joined(values) for values in zip(*branches, strict=True)]
        shapes = [tuple(getattr(var.aval, "shape", ())) for var in eqn.outvars]
        is_input = any(operand.is_input for operand in operands)
        axes: tuple[Axis, ...] | None = None
        if name in _PRODUCTS:
            axes = self._products(eqn, operands)
        elif name == "gather":
            axes = self._gather(eqn, operands)
        elif name in _REDUCTIONS:
            axes = _dropped(eqn, operands[0].axes)
        elif name in _MOVES:
            axes = _MOVES[name](eqn, operands[0].axes)
            if axes is not None:
                self._mark("s", self._picked(operands[0], axes))
        elif name in _ELEMENTWISE:
            full = [_resized(x, shapes[0]) for x in operands if len(x.axes) == len(shapes[0])]
            axes = _joined(full).axes if full else None
        if axes is not None:
            return [_resized(Value(axes, is_input), shape) for shape in shapes]
        for operand in operands:
            if not operand.is_input:
                self._mark(UNKNOWN, operand.axes)
        return [_plain(shape, is_input) for shape in shapes]

    def _picked(self, operand: Value, axes: tuple[Axis, ...]) -> list[Axis]:
        """The axes that vanish because one of several indices was taken: a layer of a stack."""
        if operand.is_input:
            return []
        gone = _places(operand.axes) - _places(axes)
        picked = {(path, axis) for path, axis in gone if self._shapes[path][axis] > 1}
        return [((1, frozenset(picked)),)]

    def _scan(self, eqn: Any, operands: list[Value]) -> list[Value]:
        num_consts, num_carry = eqn.params["num_consts"], eqn.params["num_carry"]
        consts, carry = operands[:num_consts], operands[num_consts : num_consts + num_carry]
        stacks = operands[num_consts + num_carry :]
        self._share([stack.axes[:1] for stack in stacks], stacks)
        slices = [stack._replace(axes=stack.axes[1:]) for stack in stacks]
        while True:  # Until it is known what depends on what.
            outputs = self.walk(eqn.params["jaxpr"], [*consts, *carry, *slices])
            pairs = zip(carry, outputs[:num_carry], strict=True)
            after = [_joined(pair) for pair in pairs]
            if after == carry:
                break
            carry = after
        length = _plain((eqn.params["length"],)).axes
        stacked = [out._replace(axes=(*length, *out.axes)) for out in outputs[num_carry:]]
        return [*outputs[:num_carry], *stacked]

    def _share(self, axes: list[tuple[Axis, ...]], operands: Sequence[Value]) -> None:
        """Marks axes that run over layers: those of kernels, and of what is beside them."""
        kernels = [a for a, operand in zip(axes, operands, strict=True) if not operand.is_input]
        self._mark("s", itertools.chain(*kernels))
        if any(map(_places, kernels)):
            for of_operand, operand in zip(axes, operands, strict=True):
                self._beside |= _places(of_operand) if operand.is_input else set()

    def _products(self, eqn: Any, operands: list[Value]) -> tuple[Axis, ...]:
        """The axes of a product's result; marks those of the kernel in it, if there is one."""
        left, right = operands
        shared, summed, kept, positions, arrange = _PRODUCTS[eqn.primitive.name](
            eqn, left.axes, right.axes
        )
        if left.is_input != right.is_input:
            kernel = 0 if right.is_input else 1
            self._mark("i", summed[kernel])
            self._mark("o", kept[kernel])
            self._mark("p", positions)
            self._share(list(shared), operands)
        if left.is_input and right.is_input:
            kept = ([_forget(axis) for axis in kept[0]], [_forget(axis) for axis in kept[1]])
            shared = (tuple(map(_forget, shared[0])), tuple(map(_forget, shared[1])))
        both = [_join(pair) for pair in zip(*shared, strict=True)]
        return arrange(both, *kept)

    def _gather(self, eqn: Any, operands: list[Value]) -> tuple[Axis, ...]:
        table, indices = operands
        numbers, sizes = eqn.params["dimension_numbers"], eqn.outvars[0].aval.shape
        alone = set(numbers.operand_batching_dims)
        gone = set(numbers.collapsed_slice_dims)
        kept = [a for axis, a in enumerate(table.axes) if axis not in alone | gone]
        stacked = [table.axes[axis] for axis in alone]
        rows = [n for axis, n in enumerate(sizes) if axis not in numbers.offset_dims]
        is_one = math.prod(rows) == math.prod(map(_size, stacked))
        if not table.is_input and indices.is_input and len(kept) < 2:
            self._mark("i", [table.axes[axis] for axis in gone])  # an embedding, of features
            self._mark("o", kept)
            self._mark("s", stacked)
        elif not table.is_input and not indices.is_input and is_one:
            self._mark("s", self._picked(table, (*kept, *stacked)))
        elif not table.is_input:  # Rows in another order, or experts that are chosen by the inputs.
            self._mark(UNKNOWN, table.axes)
        result = list(_plain(sizes).axes)
        for axis, found in zip(numbers.offset_dims, kept, strict=True):
            result[axis] = found
        return tuple(result)


# -- Products: axes that both have, that are summed over, that stay, and that are positions --------

_Product = tuple[
    tuple[tuple[Axis, ...], tuple[Axis, ...]],
    tuple[list[Axis], list[Axis]],
    tuple[list[Axis], list[Axis]],
    list[Axis],
    Callable[..., tuple[Axis, ...]],
]


def _dot(eqn: Any, left: tuple[Axis, ...], right: tuple[Axis, ...]) -> _Product:
    summed, shared = eqn.params["dimension_numbers"]
    parts: list[Any] = []
    for axes, s, b in zip((left, right), summed, shared, strict=True):
        free = [axis for i, axis in enumerate(axes) if i not in (*s, *b)]
        parts.append((tuple(axes[i] for i in b), [axes[i] for i in s], free))
    (b0, s0, f0), (b1, s1, f1) = parts
    return (b0, b1), (s0, s1), (f0, f1), [], lambda both, ours, theirs: (*both, *ours, *theirs)


def _convolution(eqn: Any, left: tuple[Axis, ...], right: tuple[Axis, ...]) -> _Product:
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    (batch, features, *_), (out, into, *space) = numbers.lhs_spec, numbers.rhs_spec
    # `vmap` over kernels makes one convolution of groups, the layers the slowest factor of both.
    layers, own = _layers_in_groups(right[out], groups)
    beside = _layers_in_groups(left[features], groups)[0] if layers else ()
    sizes = eqn.outvars[0].aval.shape

    def arrange(both: list[Axis], kept: list[Axis], made: list[Axis]) -> tuple[Axis, ...]:
        result = list(_plain(sizes).axes)
        result[numbers.out_spec[0]] = kept[0]
        result[numbers.out_spec[1]] = (*itertools.chain(*both), *made[0])
        return tuple(result)

    shared = ((_resize(beside, _size(layers)),), (layers,)) if layers else ((), ())
    positions = [right[axis] for axis in space]
    return shared, ([left[features]], [right[into]]), ([left[batch]], [own]), positions, arrange


def _layers_in_groups(axis: Axis, groups: int) -> tuple[Axis, Axis]:
    """Splits an axis of features into the factors that are groups of their own, and the others."""
    count, size = 0, 1
    while count < len(axis) - 1 and groups % (size * axis[count][0]) == 0:
        if axis[count][1] & _places([axis[count + 1 :]]):
            break  # one axis of a leaf, split into groups and their features
        size, count = size * axis[count][0], count + 1
    return (axis[:count], axis[count:]) if groups > 1 else ((), axis)


def _conv2d(eqn: Any, left: tuple[Axis, ...], right: tuple[Axis, ...]) -> _Product:
    """Of `ops`: NHWC and HWIO; a fifth axis in front of both runs over layers."""
    *both, batch, _, _, features = left
    *layers, height, width, into, out = right
    rows, columns = eqn.outvars[0].aval.shape[-3:-1]
    space = _plain((rows, columns)).axes
    kept: tuple[list[Axis], list[Axis]] = ([batch], [out])
    return (
        (tuple(both), tuple(layers)),
        ([features], [into]),
        kept,
        [height, width],
        lambda both, kept, made: (*both, *kept, *space, *made),
    )


_PRODUCTS: dict[str, Callable[..., _Product]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "conv2d": _conv2d,
}


# -- Operations that only move axes, or go entry by entry ------------------------------------------


def _dropped(eqn: Any, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    gone = eqn.params.get("axes", eqn.params.get("dimensions"))
    return tuple(axis for i, axis in enumerate(axes) if i not in gone)


def _broadcast(eqn: Any, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    shape = eqn.params["shape"]
    result = list(_plain(shape).axes)
    for place, axis in zip(eqn.params["broadcast_dimensions"], axes, strict=True):
        if _size(axis) == shape[place]:
            result[place] = axis
    return tuple(result)


def _reshape(eqn: Any, axes: tuple[Axis, ...]) -> tuple[Axis, ...] | None:
    """Deals the factors out anew; None where a factor would have to be cut between two entries."""
    order = eqn.params["dimensions"] or range(len(axes))
    factors = [factor for i in order for factor in axes[i] if factor != _ONE]
    result = []
    for size in eqn.params["new_sizes"]:
        axis: list[Any] = []
        while factors and (_size(axis) < size or (size == 1 and not axis and factors[0][0] == 1)):
            whole, places = factors.pop(0)
            part = min(whole, size // _size(axis))
            if not part or whole % part:
                return None
            axis.append((part, places))
            if part < whole:
                factors.insert(0, (whole // part, places))
            if size % _size(axis):
                return None
        result.append(tuple(axis) or (_ONE,))
    return tuple(result)


_REDUCTIONS = {f"reduce_{kind}" for kind in ("sum", "max", "min", "prod", "and", "or")}
_MOVES: dict[str, Callable[[Any, tuple[Axis, ...]], tuple[Axis, ...] | None]] = {
    "transpose": lambda eqn, axes: tuple(axes[i] for i in eqn.params["permutation"]),
    "reshape": _reshape,
    "squeeze": _dropped,
    "unstack": lambda eqn, axes: (*axes[: eqn.params["axis"]], *axes[eqn.params["axis"] + 1 :]),
    "broadcast_in_dim": _broadcast,
    **dict.fromkeys(
        ("rev", "pad", "slice", "dynamic_slice", "split", "copy"), lambda eqn, axes: axes
    ),
}
_ELEMENTWISE = {
    *("add", "add_any", "sub", "mul", "div", "rem", "max", "min", "pow", "integer_pow", "square"),
    *("neg", "abs", "sign", "floor", "ceil", "round", "clamp", "is_finite", "nextafter", "atan2"),
    *("exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erf_inv", "erfc"),
    *("sqrt", "rsqrt", "cbrt", "sin", "cos", "tan", "real", "imag", "complex", "conj"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "not", "select_n", "name"),
    *("convert_element_type", "reduce_precision", "stop_gradient", "bitcast_convert_type"),
    *("concatenate", "dynamic_update_slice", "sharding_constraint", "mesh_cast", "reshard"),
}


# -- Axes ------------------------------------------------------------------------------------------

_ONE: tuple[int, frozenset[Place]] = (1, frozenset())


def _plain(shape: Sequence[int], is_input: bool = False) -> Value:
    return Value(tuple(((n, frozenset()),) for n in shape), is_input)


def _size(axis: Iterable[tuple[int, Any]]) -> int:
    return math.prod(size for size, _ in axis)


def _places(axes: Iterable[Axis]) -> frozenset[Place]:
    return frozenset().union(*(places for axis in axes for _, places in axis))


def _forget(axis: Axis) -> Axis:
    return ((_size(axis), frozenset()),)


def _resize(axis: Axis, size: int) -> Axis:
    return axis if _size(axis) == size else ((size, _places([axis])),)


def _resized(value: Value, shape: Sequence[int]) -> Value:
    return value._replace(axes=tuple(map(_resize, value.axes, shape)))


def _join(axes: Sequence[Axis]) -> Axis:
    """What an axis is that is several at once, as in a sum."""
    known = [axis for axis in axes if _places([axis])] or axes[:1]
    if len({tuple(size for size, _ in axis) for axis in known}) > 1:
        return ((_size(known[0]), _places(known)),)
    return tuple(
        (factors[0][0], frozenset().union(*(places for _, places in factors)))
        for factors in zip(*known, strict=True)
    )


def _joined(values: Sequence[Value]) -> Value:
    axes = tuple(map(_join, zip(*(value.axes for value in values), strict=True)))
    return Value(axes, any(value.is_input for value in values))
