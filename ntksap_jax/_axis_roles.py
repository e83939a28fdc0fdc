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
from typing import Any

import numpy as np

from ntksap_jax import _axis_factors as factors
from ntksap_jax import _jaxprs
from ntksap_jax._axis_factors import Axis, Place, Value
from ntksap_jax._axis_products import PRODUCTS

UNKNOWN = "?"


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
        else factors.plain(shape, is_input=True)
        for path, shape in shapes.items()
    ]
    inputs = program.jaxpr.invars[len(arguments) :]
    arguments += [factors.plain(var.aval.shape, is_input=True) for var in inputs]
    roles.walk(program, arguments)
    return {path: roles.letters(path) for path in followed}


class _Roles:
    """What a program has been found to do with the axes of its leaves."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._found: dict[Place, list[str]] = {}  # letters, in the order of the uses
        self._beside: set[Place] = set()  # axes of outputs that run along other kernels' layers
        self._between: set[Place] = set()  # axes that are summed over in products of kernels
        self._added: set[str] = set()  # kernels that are made into one by a sum

    def letters(self, path: str) -> str:
        places = [(path, axis) for axis in range(len(self._shapes[path]))]
        found = [self._found.get(place, []) for place in places]
        # Layers side by side, which `vmap` makes over the same inputs, look like outputs at first.
        beside = [
            place in self._beside and "o" in marks
            for place, marks in zip(places, found, strict=True)
        ]
        own = [marks for marks, b in zip(found, beside, strict=True) if not b]
        if ["o"] in own:
            found = [
                [*(each for each in marks if each not in "so"), "s"] if b else marks
                for marks, b in zip(found, beside, strict=True)
            ]
        word = "".join(m[0] if len(m) == 1 else UNKNOWN for m in _as_first_used(found))
        # In x @ (W + A @ B), as of low-rank adapters, the axis between is what A has no other of.
        between = {"i": "o", "o": "i"}.get("".join(set(word) & {"i", "o"}), UNKNOWN)
        if path not in self._added:
            return word
        return "".join(
            between if place in self._between and not marks else letter
            for place, marks, letter in zip(places, found, word, strict=True)
        )

    def walk(self, jaxpr: Any, arguments: list[Value]) -> list[Value]:
        return _jaxprs.walk(
            jaxpr, arguments, self._step, constant=lambda value: factors.plain(np.shape(value))
        )

    def _mark(self, letter: str, axes: Iterable[Axis]) -> None:
        for place in factors.places_of(axes):
            letters = self._found.setdefault(place, [])
            letters += [letter] if letter not in letters else []

    def _step(self, eqn: Any, operands: list[Value], where: str) -> list[Value] | None:
        name = eqn.primitive.name
        if _jaxprs.called(eqn) is not None:
            return None
        shapes = [tuple(getattr(var.aval, "shape", ())) for var in eqn.outvars]
        if name == "scan":
            return self._scan(eqn, operands)
        if name == "while":
            return self._while(eqn, operands)
        if name == "shard_map":  # Each device has a part of each axis.
            inner = eqn.params["jaxpr"]
            parts = zip(operands, inner.invars, strict=True)
            found = self.walk(inner, [factors.resized(x, var.aval.shape) for x, var in parts])
            return list(map(factors.resized, found, shapes))
        if name in _SIDE_BY_SIDE and all(
            len(x.axes) == len(shape) for x, shape in zip(operands, shapes, strict=True)
        ):
            return list(map(factors.resized, operands, shapes))
        if name == "cond":
            branches = [self.walk(branch, operands[1:]) for branch in eqn.params["branches"]]
            return [factors.joined(values) for values in zip(*branches, strict=True)]
        is_input = any(operand.is_input for operand in operands)
        axes: tuple[Axis, ...] | None = None
        if name in PRODUCTS:
            axes = self._products(eqn, operands)
        elif name == "gather":
            axes = self._gather(eqn, operands)
        elif name in _REDUCTIONS:
            axes = factors.dropped(eqn, operands[0].axes)
        elif name in _MOVES:
            axes = _MOVES[name](eqn, operands[0].axes)
            if axes is not None:
                self._mark("s", self._picked(operands[0], axes))
        elif name in _ELEMENTWISE:
            full = [x for x in operands if len(x.axes) == len(shapes[0])]
            if name in ("add", "add_any", "sub") and all(map(_is_kernel, operands)):
                self._added |= {path for x in full for path, _ in factors.places_of(x.axes)}
            resized = [factors.resized(x, shapes[0]) for x in full]
            axes = factors.joined(resized).axes if full else None
        if axes is not None:
            return [factors.resized(Value(axes, is_input), shape) for shape in shapes]
        for operand in operands if shapes else ():  # A print makes nothing of a kernel.
            if not operand.is_input:
                self._mark(UNKNOWN, operand.axes)
        return [factors.plain(shape, is_input) for shape in shapes]

    def _picked(self, operand: Value, axes: tuple[Axis, ...]) -> list[Axis]:
        """The axes that vanish because one of several indices was taken: a layer of a stack."""
        if operand.is_input:
            return []
        gone = factors.places_of(operand.axes) - factors.places_of(axes)
        picked = {(path, axis) for path, axis in gone if self._shapes[path][axis] > 1}
        return [((1, frozenset(picked)),)]

    def _scan(self, eqn: Any, operands: list[Value]) -> list[Value]:
        fixed, carry, stacks = _jaxprs.scan_parts(eqn, operands)
        self._share([stack.axes[:1] for stack in stacks], stacks)
        slices = [stack._replace(axes=stack.axes[1:]) for stack in stacks]
        results = self._loop(eqn.params["jaxpr"], fixed, carry, slices)
        length = factors.plain((eqn.params["length"],)).axes
        stacked = [out._replace(axes=(*length, *out.axes)) for out in results[len(carry) :]]
        return [*results[: len(carry)], *stacked]

    def _while(self, eqn: Any, operands: list[Value]) -> list[Value]:
        num_cond, num_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        fixed, carry = operands[num_cond : num_cond + num_body], operands[num_cond + num_body :]
        return self._loop(eqn.params["body_jaxpr"], fixed, carry, [])

    def _loop(
        self, body: Any, fixed: list[Value], carry: list[Value], slices: list[Value]
    ) -> list[Value]:
        return _jaxprs.settled(
            lambda carry: self.walk(body, [*fixed, *carry, *slices]),
            carry,
            join=lambda old, new: factors.joined([old, new]),
        )

    def _share(self, axes: list[tuple[Axis, ...]], operands: Sequence[Value]) -> None:
        """Marks axes that run over layers: those of kernels, and of what is beside them."""
        kernels = [a for a, operand in zip(axes, operands, strict=True) if not operand.is_input]
        self._mark("s", itertools.chain(*kernels))
        if any(map(factors.places_of, kernels)):
            for of_operand, operand in zip(axes, operands, strict=True):
                self._beside |= factors.places_of(of_operand) if operand.is_input else set()

    def _products(self, eqn: Any, operands: list[Value]) -> tuple[Axis, ...]:
        """The axes of a product's result; marks those of the kernel in it, if there is one."""
        left, right = operands[:2]
        shared, summed, kept, positions, arrange = PRODUCTS[eqn.primitive.name](
            eqn, left.axes, right.axes
        )
        if left.is_input != right.is_input:
            kernel = 0 if right.is_input else 1
            self._mark("i", summed[kernel])
            self._mark("o", kept[kernel])
            self._mark("p", positions)
            self._share(list(shared), operands[:2])
        if not left.is_input and not right.is_input:
            self._between |= factors.places_of((*summed[0], *summed[1]))
        if left.is_input and right.is_input:
            kept = (list(map(factors.forget, kept[0])), list(map(factors.forget, kept[1])))
            shared = (tuple(map(factors.forget, shared[0])), tuple(map(factors.forget, shared[1])))
        both = [factors.join(pair) for pair in zip(*shared, strict=True)]
        return arrange(both, *kept)

    def _gather(self, eqn: Any, operands: list[Value]) -> tuple[Axis, ...]:
        table, indices = operands
        numbers, sizes = eqn.params["dimension_numbers"], eqn.outvars[0].aval.shape
        alone = set(numbers.operand_batching_dims)
        gone = set(numbers.collapsed_slice_dims)
        kept = [a for axis, a in enumerate(table.axes) if axis not in alone | gone]
        stacked = [table.axes[axis] for axis in alone]
        rows = [n for axis, n in enumerate(sizes) if axis not in numbers.offset_dims]
        is_one = math.prod(rows) == math.prod(map(factors.length, stacked))
        if not table.is_input and indices.is_input and len(kept) < 2:
            self._mark("i", [table.axes[axis] for axis in gone])  # an embedding, of features
            self._mark("o", kept)
            self._mark("s", stacked)
        elif not table.is_input and not indices.is_input and is_one:
            self._mark("s", self._picked(table, (*kept, *stacked)))
        elif not table.is_input:  # Rows in another order, or experts that are chosen by the inputs.
            self._mark(UNKNOWN, table.axes)
        result = list(factors.plain(sizes).axes)
        for axis, found in zip(numbers.offset_dims, kept, strict=True):
            result[axis] = found
        return tuple(result)


def _is_kernel(value: Value) -> bool:
    """Whether an array is made of leaves alone, in all of its axes."""
    return not value.is_input and all(factors.places_of([axis]) for axis in value.axes)


def _as_first_used(found: list[list[str]]) -> list[list[str]]:
    """Takes the first use of a kernel that is used transposed too: all inputs as outputs.

    So of a table that embeds tokens and is the head, and wherever `apply` takes derivatives.
    """
    own = [marks for marks in found if {"i", "o"} & set(marks)]
    is_transposed = all({"i", "o"} == set(marks) for marks in own)
    if is_transposed and {"i", "o"} == {marks[0] for marks in own}:
        return [marks[:1] for marks in found]
    return found


# -- Operations that only move axes, or go entry by entry ------------------------------------------

_REDUCTIONS = {f"reduce_{kind}" for kind in ("sum", "max", "min", "prod", "and", "or")}
_MOVES: dict[str, Callable[[Any, tuple[Axis, ...]], tuple[Axis, ...] | None]] = {
    **dict.fromkeys(_jaxprs.MOVES | {"pad"}, lambda eqn, axes: axes),
    "transpose": lambda eqn, axes: tuple(axes[i] for i in eqn.params["permutation"]),
    "reshape": factors.reshape,
    "squeeze": factors.dropped,
    "unstack": lambda eqn, axes: (*axes[: eqn.params["axis"]], *axes[eqn.params["axis"] + 1 :]),
    "broadcast_in_dim": factors.broadcast,
}
_ELEMENTWISE = {
    *("add", "add_any", "sub", "mul", "div", "rem", "max", "min", "pow", "integer_pow", "square"),
    *("neg", "abs", "sign", "floor", "ceil", "round", "clamp", "is_finite", "nextafter", "atan2"),
    *("exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erf_inv", "erfc"),
    *("sqrt", "rsqrt", "cbrt", "sin", "cos", "tan", "real", "imag", "complex", "conj"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "not", "select_n"),
    *("bitcast_convert_type", "concatenate", "dynamic_update_slice"),
}
# Operations on several arrays at once, each of which keeps its axes.
_SIDE_BY_SIDE = {
    *("optimization_barrier", "psum", "psum_invariant", "pmax", "pmin", "pvary", "pcast"),
    *("ppermute", "all_gather", "all_gather_invariant", "reduce_scatter"),
}
