"""A model as the list of operations that it carries out: what channels are found from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.core
import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# Operations with a jaxpr among their parameters that is not simply called.
_NO_CALLS = {"while", "scan", "cond", "reduce", "reduce_window", "shard_map"}
# What comes and goes with sizes, such as a broadcast from 1 to 1, and means nothing by itself.
_LAYOUT = {
    *("reshape", "broadcast_in_dim", "squeeze", "expand_dims", "copy", "convert_element_type"),
    "name",
}

BATCH = 2
"""Examples in a trace. With one, the batch axis could not be told from a broadcast."""

Step = Callable[[Any, list[Any], str], list[Any]]


class Call(NamedTuple):
    """How a model is called: everything but its variables and the numbers in its inputs.

    Attributes:
        input_shape: shape of one example, without the batch axis.
        dtype: type of the inputs.
        kwargs: the other arguments of the call, which put the model in evaluation mode.
    """

    input_shape: tuple[int, ...]
    dtype: Any
    kwargs: dict[str, Any]

    @property
    def inputs(self) -> jax.ShapeDtypeStruct:
        """A batch of inputs, as a shape."""
        return jax.ShapeDtypeStruct((BATCH, *self.input_shape), self.dtype)


class Operation(NamedTuple):
    """What two runs of the same program have in common, whatever their numbers of channels.

    Attributes:
        name: name of the primitive.
        where: path of the module that it stands in.
        shapes: shapes of its results.
        constants: the numbers among its arguments, in words, so that NaN equals itself.
        places: which entries it takes from an axis, or where it puts them, for each axis of a slice
            and a pad.
    """

    name: str
    where: str
    shapes: tuple[tuple[int, ...], ...]
    constants: tuple[str, ...]
    places: tuple[tuple[int, ...], ...] = ()


def shapes_of(model: nn.Module, call: Call) -> dict[str, Any]:
    """Returns the variables that the model is initialised with, as shapes; computes nothing.

    Raises:
        ValueError: a model that cannot be called so, or that keeps other collections than
            "params" and "batch_stats".
    """
    try:
        variables = jax.eval_shape(
            lambda: model.init(
                jax.random.key(0), jnp.zeros(call.inputs.shape, call.dtype), **call.kwargs
            )
        )
    except Exception as error:
        raise ValueError(
            f"model: {type(model).__name__} cannot be initialised from inputs of shape "
            f"{call.inputs.shape} and the given apply_kwargs: {error}"
        ) from error
    variables = flax.core.unfreeze(variables)
    unknown = sorted(variables.keys() - {"params", "batch_stats"})
    if unknown:
        raise ValueError(
            f"model: {type(model).__name__} keeps state in collection(s) {', '.join(unknown)}, "
            "whose channels are not known. Expected only 'params' and 'batch_stats'."
        )
    return variables


def record(model: nn.Module, variables: Any, call: Call) -> Any:
    """Returns the jaxpr of `model.apply` in evaluation mode.

    Raises:
        ValueError: a model that is in training mode.
    """

    def apply(variables: Any, inputs: jax.Array) -> Any:
        return model.apply(variables, inputs, **call.kwargs)

    try:
        return jax.make_jaxpr(apply)(variables, call.inputs)
    except flax.errors.FlaxError as error:
        raise ValueError(
            f"model: {type(model).__name__} cannot be applied in evaluation mode. Pass the "
            f"arguments that mean evaluation, such as train=False. Flax says: {error}"
        ) from error


def walk(jaxpr: Any, consts: Any, arguments: list[Any], step: Step, where: str = "") -> list[Any]:
    """Goes through the operations of a jaxpr in order, into calls, by `step(eqn, operands, where)`.

    Constants reach `step` as arrays of NumPy. (A call is entered each time it stands in the
    program, so that two activations that share a jaxpr stay apart.)
    """
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return np.asarray(atom.val) if isinstance(atom, core.Literal) else values[atom]

    values.update(zip(jaxpr.constvars, map(_concrete, consts), strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        here = "/".join(filter(None, (where, str(eqn.source_info.name_stack))))
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if inner is None or eqn.primitive.name in _NO_CALLS:
            results = step(eqn, operands, here)
        else:
            body, constants = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
            results = walk(body, constants, operands, step, here)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def operations(jaxpr: Any) -> list[Operation]:
    """Lists the operations of a closed jaxpr that say what the program does."""
    found: list[Operation] = []

    def step(eqn: Any, operands: list[Any], where: str) -> list[Any]:
        if not is_layout(eqn):
            shapes = tuple(var.aval.shape for var in eqn.outvars)
            constants, places = constants_of(operands), places_of(eqn)
            found.append(Operation(eqn.primitive.name, where, shapes, constants, places))
        return [None] * len(eqn.outvars)

    walk(jaxpr.jaxpr, jaxpr.consts, [None] * len(jaxpr.jaxpr.invars), step)
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


def constants_of(operands: list[Any]) -> tuple[str, ...]:
    """The numbers that stand in the program as arguments of an operation."""
    return tuple(repr(op.item()) for op in operands if isinstance(op, np.ndarray) and op.ndim == 0)


def _concrete(constant: Any) -> Any:
    """Arrays that the program holds; keys of random numbers and the like have no NumPy form."""
    try:
        return np.asarray(constant)
    except TypeError:
        return None
