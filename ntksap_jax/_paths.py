r"""A network as a sum over paths: what SynFlow, PX and the count of live channels work on.

A network of convolutions, dense layers and ReLUs is, for fixed ReLU gates, a sum over all paths
from an input to an output of the product of the weights on the path (Gebhart, Saxena, Schrater, "A
unified paths perspective for pruning at initialization", 2021). `evaluate` computes such a sum by
walking through the operations of the network and changing three of them:

 - whatever multiplies a value that depends on the inputs (kernels, scales of normalisation,
   shortcuts' constants) goes through `factor` first: |θ|, θ², or 1 where θ ≠ 0;
 - whatever is added to such a value (biases, running means) is left out: no path begins there;
 - nonlinearities become `gate`.

Values are kept apart from their scale, a power of two for each array: sums over the paths of a deep
network overflow float32 (ResNet-50 with |θ| reaches 10^73), and the scale of the result is of no
interest to a ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntksap_jax import _jaxprs
from ntksap_jax.types import ApplyFn, Inputs, Params

Gate = Callable[[jax.Array], jax.Array]
"""What a nonlinearity becomes: a function of the values that go into it."""

Normalise = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""Splits an array into another and an exponent of two, such as `power_of_two`."""


class Path(NamedTuple):
    """A value that depends on the inputs: `array` · 2^`exponent`.

    Attributes:
        array: the value, scaled.
        exponent: a whole number, one for the array.
    """

    array: jax.Array
    exponent: jax.Array


# Elementwise functions of `jax.nn`, each one `jit` in a traced network, that are 0 at 0.
_ACTIVATIONS = {
    *("relu", "relu6", "leaky_relu", "elu", "celu", "selu", "silu", "swish", "mish"),
    *("hard_silu", "hard_swish", "hard_tanh", "soft_sign"),
}
# Operations on paths alone that commute with scaling by a positive number.
_HOMOGENEOUS = {
    *_jaxprs.MOVES,
    *("reduce_sum", "reduce_max", "reduce_window_sum", "reduce_window_max", "cumsum"),
    *("concatenate", "pad", "add", "add_any", "max", "select_n", "gather"),
}
_EXPONENT_OF_ZERO = -(2.0**20)


def power_of_two(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scales an array by a power of two, exactly, so that its largest entry is about 1.

    Zeros have the lowest exponent of all, so that a branch of them decides no common scale.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(array)))
    usable = jnp.isfinite(largest) & (largest > 0)
    exponent = jnp.floor(jnp.log2(jnp.where(usable, largest, 1).astype(jnp.float32)))
    return scale(array, -exponent), jnp.where(largest == 0, _EXPONENT_OF_ZERO, exponent)


def scale(array: jax.Array, exponent: jax.Array) -> jax.Array:
    """Returns array · 2^exponent, exactly (which `exp2` is not).

    Args:
        array: floating point.
        exponent: a whole number.
    """
    return jnp.ldexp(array, exponent.astype(jnp.int32)).astype(array.dtype)


def evaluate(
    apply: ApplyFn,
    params: Params,
    inputs: Inputs,
    *,
    factor: Callable[[jax.Array], jax.Array],
    gate: Gate = lambda values: values,
    normalise: Normalise = power_of_two,
    sum_pools: bool = False,
) -> Any:
    """Evaluates the sum over paths; differentiable with respect to `params`.

    Args:
        apply: `apply(params, inputs) -> outputs`, such as `network.apply_running`: no operation in
            it may multiply two values that both depend on the inputs.
        params: the weights; pruned ones 0.
        inputs: where the paths begin.
        factor: what a constant that multiplies a path becomes.
        gate: what a nonlinearity becomes, a function of its input; called in the order of the
            forward pass.
        normalise: splits an array into another and an exponent of two, after each product.
        sum_pools: take the sum where the network takes a maximum (of a pool's window, an axis or
            two branches), so that every path through it counts.

    Returns:
        The outputs, each a `Path`.

    Raises:
        ValueError: an operation that no path goes through, such as a product of two activations
            (attention, normalisation by the input's own statistics); it is named.
    """
    leaves, _ = jax.tree.flatten(params)
    examples, _ = jax.tree.flatten(inputs)
    jaxpr, shapes = jax.make_jaxpr(apply, return_shape=True)(params, inputs)
    rules = _Rules(factor, gate, normalise, sum_pools)
    paths = [Path(jnp.asarray(example), jnp.zeros(())) for example in examples]
    outputs = _jaxprs.walk(jaxpr, [*leaves, *paths], rules.step)
    for output in outputs:
        if not isinstance(output, Path):
            raise ValueError("apply: an output does not depend on the inputs: no path ends there.")
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs)


def total(outputs: Any) -> jax.Array:
    """Sums all entries of what `evaluate` returned, up to a positive factor that is constant."""
    paths = jax.tree.leaves(outputs, is_leaf=lambda node: isinstance(node, Path))
    largest = jax.lax.stop_gradient(jnp.max(jnp.stack([path.exponent for path in paths])))
    return sum(
        (scale(jnp.sum(path.array), path.exponent - largest) for path in paths), jnp.zeros(())
    )


def gates(apply: ApplyFn, params: Params, inputs: Inputs) -> list[jax.Array]:
    """Returns which units are active, x > 0 going into each nonlinearity, in forward order.

    Args:
        apply: `apply(params, inputs) -> outputs`.
        params: the weights.
        inputs: real inputs.
    """
    recorded: list[jax.Array] = []

    def step(eqn: Any, operands: list[Any], where: str) -> list[Any] | None:
        """Computes what the network computes, and takes note at the nonlinearities."""
        arrays = [op.array if isinstance(op, Path) else op for op in operands]
        paths = [op for op in operands if isinstance(op, Path)]
        inner = _jaxprs.called(eqn)
        if paths and eqn.primitive.name == "scan":
            return _turn_by_turn(eqn, operands, step)
        if paths and _is_activation(eqn, len(paths)):
            recorded.append(jnp.broadcast_to(paths[0].array > 0, eqn.outvars[0].aval.shape))
        elif inner is not None:
            return None
        results = _jaxprs.bind(eqn, arrays) if inner is None else _jaxprs.run(inner, arrays)
        return [Path(result, jnp.zeros(())) for result in results] if paths else results

    leaves, examples = jax.tree.leaves(params), jax.tree.leaves(inputs)
    jaxpr = jax.make_jaxpr(apply)(params, inputs)
    paths = [Path(jnp.asarray(example), jnp.zeros(())) for example in examples]
    _jaxprs.walk(jaxpr, [*leaves, *paths], step)
    return recorded


# -- The walk through a network's operations -----------------------------------------------------


def _is_activation(eqn: Any, num_paths: int) -> bool:
    if _jaxprs.called(eqn) is not None:
        return eqn.params.get("name") in _ACTIVATIONS
    return eqn.primitive.name == "tanh" or (eqn.primitive.name == "max" and num_paths == 1)


class _Rules(NamedTuple):
    """What the operations become in `evaluate`, whose arguments these are."""

    factor: Callable[[jax.Array], jax.Array]
    gate: Gate
    normalise: Normalise
    sum_pools: bool

    def step(self, eqn: Any, operands: list[Any], where: str) -> list[Any] | None:
        """Carries out one operation."""
        name = eqn.primitive.name
        paths = [operand for operand in operands if isinstance(operand, Path)]
        if paths and _is_activation(eqn, len(paths)):
            path = _broadcast(paths[0], eqn)
            return [Path(self.gate(path.array), path.exponent)]
        if _jaxprs.called(eqn) is not None:
            return None
        if not paths:
            return _jaxprs.bind(eqn, operands)
        if name == "scan":
            return _turn_by_turn(eqn, operands, self.step)
        if name == "neg":
            return [self.scaled(paths[0], jnp.float32(-1))]
        if name == "sub" and isinstance(operands[1], Path):
            operands, name = [operands[0], self.scaled(operands[1], jnp.float32(-1))], "add"
            paths = [operand for operand in operands if isinstance(operand, Path)]
        if name in ("add", "add_any", "sub", "min") and len(paths) == 1:
            return [_broadcast(paths[0], eqn)]
        if name == "div" and len(paths) == 1 and isinstance(operands[0], Path):
            return [self.product(eqn, [operands[0], 1 / jnp.asarray(operands[1])], jnp.multiply)]
        if name == "mul" and len(paths) == 1:
            return [self.product(eqn, operands, jnp.multiply)]
        if name in ("dot_general", "conv_general_dilated", "conv2d") and len(paths) == 1:
            return [self.product(eqn, operands, lambda *arrays: _jaxprs.bind(eqn, list(arrays))[0])]
        if self.sum_pools and name == "reduce_window_max":
            summed = jax.lax.reduce_window_sum_p.bind(paths[0].array, **eqn.params)
            return [Path(summed, paths[0].exponent)]
        if self.sum_pools and name == "reduce_max":
            summed = jnp.sum(paths[0].array, axis=eqn.params["axes"])
            return [Path(summed, paths[0].exponent)]
        looks_up = name == "gather" and not isinstance(operands[0], Path)
        if name in _HOMOGENEOUS and not looks_up:
            return _together(eqn, operands, add=name == "add" or (self.sum_pools and name == "max"))
        if any(jnp.issubdtype(path.array.dtype, jnp.integer) for path in paths):
            raise ValueError(
                f"apply: the network takes {name!r} of integers, as nn.Embed does to look them up "
                "in its table, and no path goes through that. Paths may begin at the embedded "
                "inputs: make the network by ntksap_jax.linen(model, (length, features)), and give "
                "it data that are embedded, such as params['embed']['embedding'][tokens]."
            )
        raise ValueError(
            f"apply: the network takes {name!r} of {len(paths)} value(s) that depend on the "
            "inputs, so that it is no sum over paths. Criteria by paths (SynFlow, PX) and live "
            "channels need a network of convolutions, dense layers, ReLU-like activations, pools, "
            "shortcuts and normalisation by stored statistics. Of loops, layers in a scan will do."
        )

    def scaled(self, path: Path, constant: jax.Array) -> Path:
        return Path(path.array * self.factor(constant).astype(path.array.dtype), path.exponent)

    def product(self, eqn: Any, operands: list[Any], multiply: Callable[..., jax.Array]) -> Path:
        """Multiplies a path by a constant, which goes through `factor`."""
        exponent = next(operand.exponent for operand in operands if isinstance(operand, Path))
        arrays = [
            operand.array if isinstance(operand, Path) else self.factor(jnp.asarray(operand))
            for operand in operands
        ]
        dtype = eqn.outvars[0].aval.dtype
        array, more = self.normalise(multiply(*[array.astype(dtype) for array in arrays]))
        return Path(array, exponent + more)


def _broadcast(path: Path, eqn: Any) -> Path:
    return Path(jnp.broadcast_to(path.array, eqn.outvars[0].aval.shape), path.exponent)


def _turn_by_turn(eqn: Any, operands: list[Any], step: _jaxprs.Step) -> list[Any]:
    """Carries out a scan as its turns one after the other."""
    fixed, carry, stacks = _jaxprs.scan_parts(eqn, operands)
    turns = range(eqn.params["length"])
    returned: dict[int, list[Any]] = {}
    for turn in reversed(turns) if eqn.params["reverse"] else turns:
        slices = [
            x._replace(array=x.array[turn]) if isinstance(x, Path) else x[turn] for x in stacks
        ]
        results = _jaxprs.walk(eqn.params["jaxpr"], [*fixed, *carry, *slices], step)
        carry, returned[turn] = results[: len(carry)], results[len(carry) :]
    return [*carry, *map(_stack, zip(*(returned[turn] for turn in turns), strict=True))]


def _stack(values: tuple[Any, ...]) -> Any:
    if not any(isinstance(value, Path) for value in values):
        return jnp.stack(values)
    arrays, exponent = _to_one_scale(values)
    return Path(jnp.stack(arrays), exponent)


def _to_one_scale(operands: Sequence[Any]) -> tuple[list[jax.Array], jax.Array]:
    """Returns the arrays of paths brought to one scale, which is told; constants become 0."""
    exponent = jnp.max(jnp.stack([op.exponent for op in operands if isinstance(op, Path)]))

    def value(operand: Any) -> jax.Array:
        if isinstance(operand, Path):
            return scale(operand.array, operand.exponent - exponent)
        constant = jnp.asarray(operand)
        floating = jnp.issubdtype(constant.dtype, jnp.floating)
        return jnp.zeros_like(constant) if floating else constant

    return [value(operand) for operand in operands], exponent


def _together(eqn: Any, operands: list[Any], *, add: bool) -> list[Path]:
    """Carries out an operation on paths brought to one scale; constants beside them become 0."""
    arrays, exponent = _to_one_scale(operands)
    results = [arrays[0] + arrays[1]] if add else _jaxprs.bind(eqn, arrays)
    return [Path(result, exponent) for result in results]
