"""Follows channels through a model's operations, and takes note of its layers on the way."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import nnx

from ntksap_jax import _axis_roles, _jaxprs, flops, masks
from ntksap_jax.structured import _features, _program, _rules
from ntksap_jax.structured._labels import FIXED, Labels, Value, constant, opaque
from ntksap_jax.structured._program import Call, LabelledOperation
from ntksap_jax.structured.channels import Channels
from ntksap_jax.structured.types import FilterLayer

_PRODUCTS = {"dot_general", "conv_general_dilated", "conv2d"}
_NO_FIELD = "its module has no integer field `features` that says how many filters it has"
_SINGLE = "it has only one filter"
_NO_LAYER = (
    "it is not used as it stands, as the kernel of a convolution or dense layer: another parameter "
    "or function changes it first, or it is in a loop"
)


class Tracing:
    """One run through a model."""

    def __init__(self, model: Any, variables: Any, call: Call) -> None:
        """Traces a model, whose variables are given as shapes."""
        self._call = call
        leaves = masks.leaf_paths(variables)
        self._shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
        self._kernels: list[str] = []
        self._labels = Labels()
        self._biases: dict[str, str] = {}
        self._norms: dict[str, str] = {}
        self._axes: list[tuple[Any, Any, Any]] = []  # of each operation, see `LabelledOperation`
        self._features: dict[str, list[tuple[int, Any]]] = {}
        self._sizes: dict[str, list[tuple[int, np.ndarray]]] = {}
        self._modules: set[str] = set()
        with nn.intercept_methods(_features.marked(self._modules)):
            jaxpr = _program.record(model, variables, call)
        if isinstance(model, nnx.Module):
            self._modules |= {"/".join(map(str, path)) for path, _ in nnx.iter_graph(model)}
        roles = _axis_roles.read(jaxpr, self._shapes, list(self._shapes))
        self._outputs = {path: _outputs(path, roles[path], self._shapes) for path in leaves}
        self._leaves = {path: self._leaf(path) for path in leaves}
        names = [
            path.removeprefix("params/") if path.startswith("params/") else None for path in leaves
        ]
        self._flops = flops.count_program(jaxpr, names, batch=_program.BATCH)
        self._products: list[tuple[Any, list[Value]]] = []
        read = _jaxprs.without_unread(jaxpr)
        self._operations = _program.operations(read)
        self._unread = {id(eqn) for eqn in jaxpr.jaxpr.eqns} - {id(eqn) for eqn in read.jaxpr.eqns}
        inputs = [opaque(one.shape) for one in jax.tree.leaves(call.inputs)]
        arguments = [*self._leaves.values(), *inputs]
        outputs = _jaxprs.walk(jaxpr, arguments, self._step, constant=_program.concrete)
        axes = tuple(
            output.axes if isinstance(output, Value) else (None,) * np.ndim(output)
            for output in outputs
        )
        self._across = self._applied_across(flops.products(jaxpr, names))
        for axis in itertools.chain(*axes):
            self._labels.fix(axis, "they are the model's outputs")
        self._axes.append((axes, (), ()))
        for kernel in self._kernels:
            self._choose_axis(kernel)
            filters = self._filters(kernel)
            if len(filters) == 1:
                self.fix(kernel, _SINGLE)
            own = self._features.get(kernel.rpartition("/")[0], ())
            told = self._is_among(filters, [axis for _, axis in own])
            if isinstance(model, nn.Module) and not told:
                self.fix(kernel, _NO_FIELD)

    def fix(self, kernel: str, reason: str) -> None:
        """Makes all filters of a layer stay, for a reason."""
        self._labels.fix(self._filters(kernel), reason)

    def channels(self) -> Channels:
        """Returns the channels that can be removed, numbered in the order of the layers' calls.

        What else was found and must stay has the number `FIXED`.
        """
        self._settle()
        numbers = np.full(self._labels.count, FIXED)
        reasons, num_channels = {}, 0
        for kernel in self._kernels:
            roots = self._labels.find(self._filters(kernel))
            reason = self._labels.reasons(roots[:1])[0]
            if reason is not None:
                reasons[kernel] = reason
                continue
            _, first = np.unique(roots, return_index=True)
            fresh = [root for root in roots[np.sort(first)] if numbers[root] == FIXED]
            numbers[fresh] = np.arange(num_channels, num_channels + len(fresh))
            num_channels += len(fresh)
        for path in self._others():
            reasons[path] = _NO_LAYER
        known: dict[int, Any] = {}

        def numbered(axis: Any) -> Any:
            if not isinstance(axis, np.ndarray):
                return axis
            if id(axis) not in known:
                found = numbers[self._labels.find(axis)]
                known[id(axis)] = None if np.all(found == FIXED) else found
            return known[id(axis)]

        across: dict[str, list[tuple[int, list[np.ndarray]]]] = {}
        for kernel, count, axes in self._across:
            if labels := [found for axis in axes if (found := numbered(axis)) is not None]:
                across.setdefault(kernel, []).append((count, labels))

        def told(numbers_of: Any) -> dict[str, list[tuple[int, Any]]]:
            return {
                module: [(n, numbered(a) if isinstance(a, np.ndarray) else None) for n, a in own]
                for module, own in numbers_of.items()
            }

        sizes = {
            module: left
            for module, own in told(self._sizes).items()
            if (left := tuple(one for one in own if one[1] is not None))
        }
        return Channels(
            layers={
                kernel: self._layer(kernel, index, kernel not in reasons)
                for index, kernel in enumerate(self._kernels)
            },
            labels={path: tuple(map(numbered, leaf.axes)) for path, leaf in self._leaves.items()},
            zeroed=self._outputs,
            features={
                module: tuple(number if axis is None else axis for number, axis in own)
                for module, own in told(self._features).items()
                if any(axis is not None for _, axis in own) or _is_under(module, sizes)
            },
            sizes=sizes,
            num_channels=num_channels,
            reasons=reasons,
            # What constants alone are multiplied by costs nothing.
            flops=dict.fromkeys(self._kernels, 0) | self._flops,
            across=across,
            shapes=self._shapes,
            call=self._call,
            program=tuple(
                LabelledOperation(
                    operation,
                    tuple(tuple(map(numbered, one)) for one in axes),
                    tuple(map(numbered, lengths)),
                    tuple(map(numbered, whole)),
                )
                for operation, (axes, lengths, whole) in zip(
                    self._operations, self._axes, strict=True
                )
            ),
        )

    def _settle(self) -> None:
        """Where some filters of a layer must stay, all must: they have one number together."""
        changed = True
        while changed:
            changed = False
            for kernel in self._kernels:
                reasons = self._labels.reasons(self._filters(kernel))
                reason = next((one for one in reasons if one is not None), None)
                if reason is not None and None in reasons:
                    self.fix(kernel, f"some of its filters must stay: {reason}")
                    changed = True

    def _others(self) -> list[str]:
        """Kernels that are no layers: of other products, or only by name."""
        params = [path.removeprefix("params/") for path in self._shapes if path[:7] == "params/"]
        named = [path for path in params if path.rpartition("/")[2] == "kernel"]
        return [path for path in dict.fromkeys([*self._flops, *named]) if path not in self._kernels]

    def _filters(self, kernel: str) -> Any:
        path = f"params/{kernel}"
        return self._leaves[path].axes[self._outputs[path][0]]

    def _choose_axis(self, kernel: str) -> None:
        """Of several axes of outputs, takes the first that is free: an attention's heads."""
        path = f"params/{kernel}"
        axes = self._outputs[path]
        kinds: Any = self._leaves[path].axes
        free = tuple(axis for axis in axes if not any(self._labels.reasons(kinds[axis])))
        self._outputs[path] = (free or axes)[:1]

    def _leaf(self, path: str) -> Value:
        """A leaf, each index of each axis a channel until it is found to be another's or none.

        When a channel is removed, `shrinking.zero_out` sets to 0 what the leaf has of it: filters,
        biases, scales and shifts, but no inputs of other layers.
        """
        axes = tuple(self._labels.new(size) for size in self._shapes[path])
        removed = tuple(0.0 if axis in self._outputs[path] else None for axis in range(len(axes)))
        return Value(axes, removed, leaf=path)

    def _step(self, eqn: Any, operands: list[Any], where: str) -> list[Value] | None:
        if id(eqn) in self._unread and not self._labels.lenient:
            return self._leniently(eqn, operands, where)
        if _jaxprs.called(eqn) is not None:
            return None
        values = [
            operand if isinstance(operand, Value) else constant(operand, _shape(var))
            for operand, var in zip(operands, eqn.invars, strict=True)
        ]
        results = _rules.apply(self._labels, eqn, values, where)
        if (told := _features.read(eqn)) is not None:
            path, numbers = told
            own = results[0].axes[-len(numbers) :]
            self._features.setdefault(path, [*zip(numbers, own, strict=True)])
        if eqn.primitive.name in _PRODUCTS:
            self._products.append((eqn, values))
            results = [self._note_layer(eqn, values, results[0])]
        elif eqn.primitive.name == "reshape":
            self._note_sizes(values[0], results[0], where)
        elif len(values) == 2:
            self._note_company(values, results[0])
        if not _program.is_layout(eqn) and not self._labels.lenient:
            axes = tuple(result.axes for result in results)
            lengths = tuple(_length(values, pairs) for pairs in _rules.consumed(eqn))
            whole = axes[0] if eqn.primitive.name == "pad" else ()
            whole = values[0].axes if eqn.primitive.name == "slice" else whole
            self._axes.append((axes, lengths, whole))
        return results

    def _applied_across(
        self, products: list[flops.Product]
    ) -> list[tuple[str, int, list[np.ndarray]]]:
        """Kernels that are applied across other channels: their FLOPs there, and the channels."""
        found = []
        ours = {id(eqn) for eqn, _ in self._products}  # without those in loops
        followed = iter(self._products)
        for product in products:
            if id(product.eqn) not in ours:
                continue
            values = next(values for eqn, values in followed if eqn is product.eqn)
            kinds = _rules.unsummed(product.eqn, values, product.operand)
            if axes := [kind for kind in kinds if isinstance(kind, np.ndarray)]:
                found.append((product.kernel, product.flops // _program.BATCH, axes))
        return found

    def _leniently(self, eqn: Any, operands: list[Any], where: str) -> list[Value]:
        """Only ties the channels of what no output depends on: its code still runs, on fewer."""
        self._labels.lenient = True
        results = self._step(eqn, operands, where)
        if results is None:
            inner = _jaxprs.called(eqn)
            results = _jaxprs.walk(
                inner, operands, self._step, constant=_program.concrete, where=where
            )
        self._labels.lenient = False
        return results

    def _note_layer(self, eqn: Any, operands: list[Value], result: Value) -> Value:
        """Takes note of a product with a kernel as it stands in the parameters, or transposed."""
        for operand, var in zip(operands, eqn.invars, strict=True):
            path = operand.leaf or ""
            if path[:7] != "params/" or sorted(self._shapes[path]) != sorted(_shape(var)):
                continue
            own = [self._leaves[path].axes[axis] for axis in self._outputs[path]]
            if own and all(self._is_among(axis, result.axes) for axis in own):
                kernel = path.removeprefix("params/")
                if kernel not in self._kernels:
                    self._kernels.append(kernel)
                return result._replace(layer=kernel)
        return result

    def _is_among(self, axis: Any, kinds: Any) -> bool:
        return any(
            isinstance(kind, np.ndarray)
            and len(kind) == len(axis)
            and self._labels.are_same(kind, axis)
            for kind in kinds
        )

    def _note_sizes(self, operand: Value, result: Value, where: str) -> None:
        """Takes note of the numbers of channels that a reshape into heads, or back, goes by."""
        before, after = (
            [
                kind
                for kind in one.axes
                if isinstance(kind, np.ndarray) and not self._is_among(kind, other.axes)
            ]
            for one, other in ((operand, result), (result, operand))
        )
        if len(before) == len(after) == 1 and len(before[0]) != len(after[0]):
            wide = max(before + after, key=len)
            if len(wide) > 1 and self._labels.are_same(wide[:1], wide[1:2]):
                sizes = self._sizes.setdefault(self._module_of(where), [])
                sizes += [(len(kind), kind) for kind in (*before, *after)]

    def _module_of(self, where: str) -> str:
        """The module that an operation stands in: of linen, a path begins with the model's name."""
        names = [name.partition(".")[0] for name in where.split("/")]
        paths = ("/".join(names[i:j]) for j in range(len(names), 0, -1) for i in range(j))
        return next((path for path in paths if path in self._modules), "")

    def _note_company(self, values: list[Value], result: Value) -> None:
        """Takes note of a layer's bias, and of the statistics that normalise its outputs."""
        for one, other in (values, values[::-1]):
            if one.layer is None or other.leaf is None:
                continue
            if result.layer is not None:
                self._biases.setdefault(one.layer, other.leaf.removeprefix("params/"))
            elif other.leaf.startswith("batch_stats/"):
                norm = other.leaf.removeprefix("batch_stats/").rpartition("/")[0]
                self._norms.setdefault(one.layer, norm)

    def _layer(self, kernel: str, index: int, removable: bool) -> FilterLayer:
        norm = self._norms.get(kernel)

        def path(collection: str, name: str) -> str | None:
            found = f"{norm}/{name}" if norm else name
            exists = norm is not None and f"{collection}/{found}" in self._shapes
            return found if exists else None

        return FilterLayer(
            kernel=kernel,
            index=index,
            num_filters=len(self._filters(kernel)),
            bias=self._biases.get(kernel),
            scale=path("params", "scale"),
            shift=path("params", "bias"),
            mean=path("batch_stats", "mean"),
            var=path("batch_stats", "var"),
            removable=removable,
            axis=self._outputs[f"params/{kernel}"][0] - len(self._shapes[f"params/{kernel}"]),
        )


def _length(values: list[Value], pairs: tuple[tuple[int, int], ...]) -> Any:
    """What the indices of an axis are that two operands may have in common."""
    kinds = [values[place].axes[axis] for place, axis in pairs]
    return next((kind for kind in kinds if isinstance(kind, np.ndarray)), None)


def _is_under(module: str, others: Iterable[str]) -> bool:
    """Whether a module is one of some, or inside of one: it may be told a number that changes."""
    return any(f"{module}/".startswith(f"{other}/".lstrip("/")) for other in others)


def _outputs(path: str, roles: str, shapes: Any) -> tuple[int, ...]:
    """The axes of a leaf along which zeroing a channel zeroes what the leaf has of it.

    Of kernels those that count outputs, of other parameters all; and that of the running mean of a
    normalisation without scale, which would leave 0 - mean. (With a scale the statistics do not
    matter and are left as they are.)
    """
    collection, _, rest = path.partition("/")
    every = tuple(range(len(shapes[path])))
    if collection == "params":
        own = tuple(axis for axis in every if roles[axis] == "o")
        return own or (every if not {*roles} & {*"ips"} else every[-1:])
    module, _, name = path.rpartition("/")
    scale = f"params/{module.removeprefix('batch_stats').lstrip('/')}/scale".replace("//", "/")
    return every[-1:] if name == "mean" and rest and scale not in shapes else ()


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(getattr(var.aval, "shape", ()))
