"""An nnx model as a traced program, and the same model with smaller layers.

An nnx layer holds arrays, and beside them the sizes that its constructor was given. A smaller model
is a copy that holds smaller arrays and says their sizes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

from ntksap_jax import masks
from ntksap_jax._networks import _inputs, _nnx_models
from ntksap_jax.structured import _module_sizes

if TYPE_CHECKING:
    from ntksap_jax.structured._program import Call

_COLLECTIONS = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


def shapes_of(model: nnx.Module) -> dict[str, Any]:
    """Returns the params and running statistics of a model, as shapes."""
    return jax.eval_shape(lambda leaves: leaves, variables_of(model))


def variables_of(model: nnx.Module) -> dict[str, Any]:
    """Returns the params and running statistics that a model holds, those that it has any of."""
    found = {name: _nnx_models.pure(nnx.state(model, kind)) for name, kind in _COLLECTIONS.items()}
    return {name: values for name, values in found.items() if values}


def record(model: nnx.Module, variables: Any, call: Call) -> Any:
    """Returns the jaxpr of a call in evaluation mode, as a function of variables and inputs.

    Raises:
        ValueError: a model that cannot be called so, or whose call changes its running statistics.
    """
    copy = _copy(model)
    _name_calls(copy)
    copy.eval()
    graphdef, state = nnx.split(copy)

    def apply(variables: Any, inputs: Any) -> Any:
        filled = _apart(state)
        for values in variables.values():
            nnx.replace_by_pure_dict(filled, values)
        called = nnx.merge(graphdef, filled)
        args, kwargs = _inputs.arguments(inputs)
        outputs = called(*args, **kwargs, **call.kwargs)
        before = masks.leaf_paths(variables.get("batch_stats", {}))
        after = masks.leaf_paths(_nnx_models.pure(nnx.state(called, nnx.BatchStat)))
        changed = [path for path, leaf in before.items() if after[path] is not leaf]
        if changed:
            raise ValueError(
                f"the call changes the running statistic {changed[0]!r}, as in training. Pass the "
                "arguments that mean evaluation, such as train=False"
            )
        return outputs

    try:
        return jax.make_jaxpr(apply)(variables, call.inputs)
    except Exception as error:
        raise ValueError(
            f"model: {type(model).__name__} cannot be called with {call}: {error}"
        ) from error


def resized(model: nnx.Module, variables: Any, sizes: Mapping[str, Any]) -> nnx.Module:
    """Returns a copy of a model that holds other variables, and whose layers say their sizes.

    Args:
        model: the model.
        variables: arrays, or shapes alone, by the paths of the model's own; of other sizes.
        sizes: other numbers that modules keep, by path, as pairs of a number and what it is now.
    """
    copy = _copy(model)
    for path, node in list(nnx.iter_graph(copy)):
        if isinstance(node, nnx.Module):
            own = {
                name: leaf.shape
                for collection in variables.values()
                for name, leaf in _at(collection, path).items()
                if hasattr(leaf, "shape")
            }
            _say_sizes(node, own)
            said = dict(sizes.get("/".join(map(str, path)), ()))
            for name, value in _module_sizes.with_sizes(vars(node), said).items():
                setattr(node, name, value)
    for values in variables.values():
        nnx.update(copy, values)
    return copy


def _copy(model: nnx.Module) -> Any:
    """A model of its own, which shares no more than the arrays."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, _apart(state))


def _apart(state: nnx.State) -> nnx.State:
    return jax.tree.map(lambda leaf: leaf, state)


def _name_calls(model: Any) -> None:
    """Makes every module write its path into the programs that its calls are traced to."""
    called: dict[tuple[Any, ...], Any] = {
        path: node
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Module) and callable(node)
    }
    for path, module in called.items():
        if path:
            above = next(n for n in range(len(path) - 1, -1, -1) if path[:n] in called or not n)
            module.ntksap_scope = "/".join(map(str, path[above:]))
            kind: Any = type(module)
            module.__class__ = _scoped(kind)


def _say_sizes(layer: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Sets the numbers of features that a layer of nnx keeps beside its arrays."""
    kernel = shapes.get("kernel")
    sizes: dict[str, Any] = {}
    if isinstance(layer, nnx.LinearGeneral) and kernel is not None:
        count = len(layer.in_features)
        sizes = {"in_features": kernel[:count], "out_features": kernel[count:]}
    elif kernel is not None:
        groups = getattr(layer, "feature_group_count", 1)
        inputs, outputs = kernel[-2:]
        if getattr(layer, "transpose_kernel", False):
            inputs, outputs = outputs, inputs
        if groups > 1 and groups == layer.out_features:  # depthwise: a group for each filter
            groups = outputs
        sizes = {
            "in_features": inputs * groups,
            "out_features": outputs,
            "feature_group_count": groups,
            "kernel_shape": kernel,
        }
    for name in ("embedding", "scale", "bias", "mean"):
        if name in shapes and kernel is None:
            sizes |= {"features": shapes[name][-1], "num_features": shapes[name][-1]}
    for name, size in sizes.items():
        if type(getattr(layer, name, None)) is type(size):
            setattr(layer, name, size)


def _at(tree: Any, path: tuple[Any, ...]) -> Mapping[Any, Any]:
    for key in path:
        tree = tree.get(key, {}) if isinstance(tree, Mapping) else {}
    return tree if isinstance(tree, Mapping) else {}


@functools.cache
def _scoped(kind: Any) -> Any:
    """A class of modules whose calls can be found in a traced program by the module's name."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with jax.named_scope(self.ntksap_scope):
            return kind.__call__(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": call})
