"""Follows channels through a model's operations, and takes note of its layers on the way."""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from ntksap_jax import _jaxprs, flops, masks
from ntksap_jax.structured import _program, _resized, _rules
from ntksap_jax.structured._labels import FIXED, Labels, Value, constant, opaque
from ntksap_jax.structured._program import Call, LabelledOperation
from ntksap_jax.structured.channels import Channels
from ntksap_jax.structured.types import FilterLayer

_NAME = "ntksap_jax/features/"
_PRODUCTS = {"dot_general", "conv_general_dilated", "conv2d"}
_NO_FIELD = "its module has no integer field `features` that says how many filters it has"
_SINGLE = "it has only one filter"
_NO_LAYER = (
    "it is not used as it stands, as the kernel of a convolution or dense layer whose outputs are "
    "its last axis: another parameter or function changes it first, several axes of it or another "
    "count outputs, or it is in a loop"
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
        self._leaves = {path: self._leaf(path) for path in leaves}
        self._biases: dict[str, str] = {}
        self._norms: dict[str, str] = {}
        self._axes: list[tuple[Any, Any, Any]] = []  # of each operation, see `LabelledOperation`
        self._features: dict[str, np.ndarray] = {}
        with nn.intercept_methods(_name_features()):
            jaxpr = _program.record(model, variables, call)
        names = [
            path.removeprefix("params/") if path.startswith("params/") else None for path in leaves
        ]
        self._flops = flops.count_program(jaxpr, names, batch=_program.BATCH)
        self._products: list[tuple[Any, list[Value]]] = []
        self._operations = _program.operations(jaxpr)
        arguments = [*self._leaves.values(), opaque(call.inputs.shape)]
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
            if self._shapes[f"params/{kernel}"][-1] == 1:
                self.fix(kernel, _SINGLE)
            own = self._features.get(kernel.rpartition("/")[0])
            if isinstance(model, nn.Module) and (
                own is None or not self._labels.are_same(own, self._filters(kernel))
            ):
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
        return Channels(
            layers={
                kernel: self._layer(kernel, index, kernel not in reasons)
                for index, kernel in enumerate(self._kernels)
            },
            labels={path: tuple(map(numbered, leaf.axes)) for path, leaf in self._leaves.items()},
            features={
                module: found
                for module, axis in self._features.items()
                if (found := numbered(axis)) is not None
            },
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
        return self._leaves[f"params/{kernel}"].axes[-1]

    def _leaf(self, path: str) -> Value:
        """A leaf, each index of each axis a channel until it is found to be another's or none.

        When a channel is removed, `shrinking.zero_out` sets to 0 what the leaf's last axis has of
        it: filters, biases, scales and shifts, but no inputs of other layers.
        """
        shape = self._shapes[path]
        axes = tuple(self._labels.new(size) for size in shape)
        zero = 0.0 if is_zeroed(path, self._shapes) else None
        removed = (None,) * (len(shape) - 1) + (zero,) if shape else ()
        return Value(axes, removed, leaf=path)

    def _step(self, eqn: Any, operands: list[Any], where: str) -> list[Value] | None:
        if _jaxprs.called(eqn) is not None:
            return None
        values = [
            operand if isinstance(operand, Value) else constant(operand, _shape(var))
            for operand, var in zip(operands, eqn.invars, strict=True)
        ]
        results = _rules.apply(self._labels, eqn, values, where)
        if str(eqn.params.get("name", "")).startswith(_NAME):
            axis = results[0].axes[-1]
            if isinstance(axis, np.ndarray):
                self._features.setdefault(eqn.params["name"].removeprefix(_NAME), axis)
        if eqn.primitive.name in _PRODUCTS:
            self._products.append((eqn, values))
            results = [self._note_layer(eqn, results[0])]
        elif len(values) == 2:
            self._note_company(values, results[0])
        if not _program.is_layout(eqn):
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

    def _note_layer(self, eqn: Any, result: Value) -> Value:
        """Takes note of a product with a kernel as it stands in the parameters."""
        kernel = result.layer
        if kernel is None or self._shapes[f"params/{kernel}"] != _shape(eqn.invars[1]):
            return result._replace(layer=None)
        if kernel not in self._kernels:
            self._kernels.append(kernel)
        return result

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
            num_filters=self._shapes[f"params/{kernel}"][-1],
            bias=self._biases.get(kernel),
            scale=path("params", "scale"),
            shift=path("params", "bias"),
            mean=path("batch_stats", "mean"),
            var=path("batch_stats", "var"),
            removable=removable,
        )


def _length(values: list[Value], pairs: tuple[tuple[int, int], ...]) -> Any:
    """What the indices of an axis are that two operands may have in common."""
    kinds = [values[place].axes[axis] for place, axis in pairs]
    return next((kind for kind in kinds if isinstance(kind, np.ndarray)), None)


def _name_features() -> Any:
    """Makes an interceptor that marks the outputs that have as many features as a module says."""
    changed: dict[str, int] = {}

    def name_features(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, path = context.module, "/".join(context.module.path)
        if isinstance(module, _resized.Resized):  # of two around each other, the outer one decides
            for name, number in module.features:
                changed.setdefault(f"{path}/{name}".lstrip("/"), number)
        outputs = next_fun(*args, **kwargs)
        if context.method_name == "__call__" and _resized.has_features(module):
            number = changed.get(path, module.features)
            if getattr(outputs, "ndim", 0) > 0 and outputs.shape[-1] == number:
                return checkpoint_name(outputs, _NAME + path)
        return outputs

    return name_features


def is_zeroed(path: str, leaves: Any) -> bool:
    """Whether zeroing a channel zeroes what a leaf's last axis has of it.

    All parameters; and the running mean of a normalisation without scale, which would leave
    0 - mean. (With a scale the statistics do not matter and are left as they are.)
    """
    collection, _, rest = path.partition("/")
    if collection == "params":
        return True
    module, _, name = path.rpartition("/")
    scale = f"params/{module.removeprefix('batch_stats').lstrip('/')}/scale".replace("//", "/")
    return name == "mean" and bool(rest) and scale not in leaves


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(getattr(var.aval, "shape", ()))
