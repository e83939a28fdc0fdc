"""A model as the list of operations that it carries out: what channels are found from."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any, NamedTuple

import flax.core
import flax.errors
import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np
from flax import nnx

from ntksap_jax import _jaxprs
from ntksap_jax._networks import _inputs
from ntksap_jax.structured import _nnx_model, _rules

# What comes and goes with sizes, such as a broadcast from 1 to 1, and means nothing by itself.
_LAYOUT = {
    *("reshape", "broadcast_in_dim", "squeeze", "expand_dims", "copy", "convert_element_type"),
    "name",
}
# What an operation's parameters say beside the shapes of its results.
_SETTINGS = {
    *("y", "exponent", "axes", "axis", "dimension", "dimensions", "permutation", "reverse"),
    *("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation"),
    *("lhs_dilation", "rhs_dilation", "dimension_numbers", "length", "jaxpr", "branches"),
    *("cond_jaxpr", "body_jaxpr"),
}

BATCH = 2
"""Examples in a trace. With one, the batch axis could not be told from a broadcast."""


class Call(NamedTuple):
    """How a model is called: everything but its variables and the numbers in its inputs.

    Attributes:
        inputs: a batch of inputs, as a shape; or a dict or tuple of them.
        kwargs: the other arguments of the call, which put the model in evaluation mode.
    """

    inputs: Any
    kwargs: dict[str, Any]

    def __str__(self) -> str:
        """What the model is called with, for messages."""
        shapes = jax.tree.map(lambda one: one.shape, self.inputs)
        return f"inputs of shape {shapes} and the given apply_kwargs"


def call_of(input_shape: Any, dtype: Any, kwargs: dict[str, Any]) -> Call:
    """Makes a `Call` of the arguments of `structured.trace`."""
    shapes, dtypes = _inputs.specification(input_shape, dtype)
    inputs = jax.tree.map(
        lambda dtype, shape: jax.ShapeDtypeStruct((BATCH, *shape), dtype), dtypes, shapes
    )
    return Call(inputs, kwargs)


class Operation(NamedTuple):
    """What two runs of the same program have in common, whatever their numbers of channels.

    Attributes:
        name: name of the primitive.
        where: path of the module that it stands in.
        shapes: shapes of its results.
        constants: the numbers among its arguments, in words, so that NaN equals itself; of whole
            arrays, a digest.
        sources: which earlier results, or arguments of the program, the others are.
        settings: what its parameters say.
        lengths: of the axes that it sums over, or of all if it cannot be followed.
        places: which entries it takes from an axis, or where it puts them, for each axis of a slice
            and a pad.
    """

    name: str
    where: str
    shapes: tuple[tuple[int, ...], ...]
    constants: tuple[str, ...]
    sources: tuple[int | None, ...]
    settings: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    places: tuple[tuple[int, ...], ...] = ()


class LabelledOperation(NamedTuple):
    """An operation of the original model.

    Attributes:
        operation: name, place, shapes and constants.
        axes: for each axis of each result the channels of its indices, as for leaves; "free" where
            the result is constant along the axis.
        lengths: the same for the axes that `operation.lengths` are the lengths of.
        whole: the same for the array that `operation.places` are places in.
    """

    operation: Operation
    axes: tuple[tuple[Any, ...], ...]
    lengths: tuple[Any, ...]
    whole: tuple[Any, ...]


def shapes_of(model: Any, call: Call) -> dict[str, Any]:
    """Returns the variables of a model, as shapes; computes nothing.

    Those that a linen module is initialised with, and those that an nnx one holds.

    Raises:
        ValueError: a model that cannot be called so, or that keeps other collections than
            "params" and "batch_stats".
    """
    if isinstance(model, nnx.Module):
        return _nnx_model.shapes_of(model)
    try:
        args, kwargs = _inputs.arguments(call.inputs)
        variables = jax.eval_shape(
            lambda key, args, kwargs: model.init(key, *args, **kwargs, **call.kwargs),
            *(jax.random.key(0), args, kwargs),
        )
    except Exception as error:
        raise ValueError(
            f"model: {type(model).__name__} cannot be initialised from {call}: {error}"
        ) from error
    variables = flax.core.unfreeze(variables)
    known = {name: variables.pop(name) for name in ("params", "batch_stats") if name in variables}
    unknown = sorted(name for name, collection in variables.items() if not _is_sown(collection))
    if unknown:
        raise ValueError(
            f"model: {type(model).__name__} keeps state in collection(s) {', '.join(unknown)}, "
            "whose channels are not known. Expected only 'params' and 'batch_stats'."
        )
    return known


def _is_sown(collection: Any) -> bool:
    """Whether a model writes there and does not read, such as losses, or names of axes."""
    leaves = flax.traverse_util.flatten_dict(collection).values()
    return all(isinstance(leaf, tuple) or not jax.tree.leaves(leaf) for leaf in leaves)


def record(model: Any, variables: Any, call: Call) -> Any:
    """Returns the jaxpr of a call in evaluation mode, a function of variables and inputs.

    Raises:
        ValueError: a model that is in training mode.
    """
    if isinstance(model, nnx.Module):
        return _nnx_model.record(model, variables, call)
    if not isinstance(model, nn.Module):

        def function(variables: Any, inputs: Any) -> Any:
            args, kwargs = _inputs.arguments(inputs)
            return model(variables["params"], *args, **kwargs, **call.kwargs)

        return jax.make_jaxpr(function)(variables, call.inputs)

    def apply(variables: Any, inputs: Any) -> Any:
        args, kwargs = _inputs.arguments(inputs)
        return model.apply(variables, *args, **kwargs, **call.kwargs)

    try:
        return jax.make_jaxpr(apply)(variables, call.inputs)
    except flax.errors.FlaxError as error:
        raise ValueError(
            f"model: {type(model).__name__} cannot be applied in evaluation mode. Pass the "
            f"arguments that mean evaluation, such as train=False. Flax says: {error}"
        ) from error


def operations(jaxpr: Any) -> list[Operation]:
    """Lists the operations of a closed jaxpr that say what the program does."""
    found: list[Operation] = []
    fresh = itertools.count()

    def note(name: str, where: str, operands: list[Any], shapes: Any, **more: Any) -> None:
        constants = tuple(_in_words(op) for op in operands if isinstance(op, np.ndarray))
        sources = tuple(None if isinstance(op, np.ndarray) else op for op in operands)
        found.append(Operation(name, where, tuple(shapes), constants, sources, **more))

    def step(eqn: Any, operands: list[Any], where: str) -> list[Any] | None:
        if _jaxprs.called(eqn) is not None:
            return None
        if is_layout(eqn):  # a number that is broadcast is still that number
            return operands[:1]
        sizes = [getattr(var.aval, "shape", ()) for var in eqn.invars]
        note(
            eqn.primitive.name,
            where,
            operands,
            (var.aval.shape for var in eqn.outvars),
            settings=tuple(str(eqn.params[name]) for name in sorted(_SETTINGS & eqn.params.keys())),
            lengths=tuple(sizes[place][axis] for (place, axis), *_ in _rules.consumed(eqn)),
            places=places_of(eqn),
        )
        return list(itertools.islice(fresh, len(eqn.outvars)))

    arguments = list(itertools.islice(fresh, len(jaxpr.jaxpr.invars)))
    outputs = _jaxprs.walk(jaxpr, arguments, step, constant=concrete)
    note("return", "", outputs, (var.aval.shape for var in jaxpr.jaxpr.outvars))
    return found


def places_of(eqn: Any) -> tuple[tuple[int, ...], ...]:
    """What `Operation.places` holds."""
    params, name = eqn.params, eqn.primitive.name
    shape = eqn.invars[0].aval.shape if name in ("slice", "pad") else ()
    if name == "slice":
        steps = params["strides"] or (1,) * len(shape)
        bounds = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
        return tuple(tuple(range(*bound)) for bound in bounds)
    if name == "pad":
        return tuple(
            tuple(range(int(before), int(before) + size * (int(inside) + 1), int(inside) + 1))
            for size, (before, _, inside) in zip(shape, params["padding_config"], strict=True)
        )
    return ()


def is_layout(eqn: Any) -> bool:
    """Whether an operation only rearranges, and may be missing at other sizes."""
    return eqn.primitive.name in _LAYOUT


def _in_words(constant: np.ndarray) -> str:
    if constant.size and bool(np.all(constant == constant.flat[0])):
        return repr(constant.flat[0].item())
    return f"an array {hashlib.sha256(constant.tobytes()).hexdigest()[:8]}"


def concrete(constant: Any) -> Any:
    """An array that the program holds; None of keys of random numbers and the like."""
    try:
        return np.asarray(constant)
    except TypeError:
        return None
