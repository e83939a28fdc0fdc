"""What a network costs to evaluate: floating-point operations, dense and under a mask.

Counted as in TPP's tables: 2 FLOPs for each multiply-add of a kernel, per example; biases,
normalisation, activations and pools are free. `structured.cost` counts the same way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ntksap_jax import _jaxprs, masks
from ntksap_jax.types import Mask, Network

_INPUTS = "the inputs"
"""In the set of what a value depends on, beside the paths of leaves; what else is there does not
matter then. (A constant depends on nothing.)"""

_NOTHING: frozenset[Any] = frozenset()


def count(network: Network) -> dict[str, int]:
    """Counts the FLOPs of every kernel for one example by tracing the network; nothing is computed.

    A kernel is whatever parameter the network multiplies activations by in a convolution or a
    matrix product; if it is made of several, as by `nn.WeightNorm`, the one of its size. Products
    of activations, as in attention, belong to no kernel and do not count. The zeros that a
    convolution pads with count; those that a transposed one puts between its inputs and around
    them do not.

    Args:
        network: the model, of any framework. A kernel that is used several times counts every time,
            one in a `jax.lax.scan` at each step. Kernels in `while`, `cond` and `shard_map` are not
            counted.

    Returns:
        FLOPs by path of the kernel in the params, in the order of the forward pass.

    >>> import flax.linen as nn
    >>> import ntksap_jax as nts
    >>> count(nts.linen(nn.Sequential([nn.Dense(10), nn.relu, nn.Dense(2)]), (100,)))
    {'layers_0/kernel': 2000, 'layers_2/kernel': 40}
    """
    params = jax.eval_shape(network.init, jax.random.key(0))
    inputs = network.examples(1)
    program = jax.make_jaxpr(network.apply_running)(params, inputs)
    return count_program(program, list(masks.leaf_paths(params)))


def kept(counts: Mapping[str, int], mask: Mask) -> int:
    """Sums the FLOPs that remain when pruned weights cost nothing.

    That is arithmetic, not time: dense hardware multiplies by the zeros.

    Args:
        counts: result of `count` for the same network.
        mask: kernels that it does not prune count in full.

    Returns:
        FLOPs for one example.

    Raises:
        ValueError: a pruned leaf that `count` did not see, so that its cost is unknown.

    >>> import jax.numpy as jnp
    >>> kept({"kernel": 12}, {"kernel": jnp.array([[True, False, False]]), "bias": None})
    4
    """
    total = dict(counts)
    for path, keep in masks.leaf_paths(mask).items():
        if path not in counts:
            raise ValueError(
                f"mask: leaf {path!r} is no kernel whose FLOPs were counted, so its cost is "
                f"unknown. Expected some of: {', '.join(counts)}."
            )
        total[path] = counts[path] * int(keep.sum()) // keep.size
    return sum(total.values())


def count_program(
    program: Any, arguments: Sequence[str | None], *, batch: int = 1
) -> dict[str, int]:
    """Counts the FLOPs of every kernel for one example of a traced program.

    Args:
        program: a closed jaxpr.
        arguments: for its first arguments the path of the leaf that it is, None for constants such
            as batch statistics; further arguments are the inputs.
        batch: number of examples in the inputs.

    Returns:
        FLOPs by path of the kernel, in the order of the program.

    >>> import jax.numpy as jnp
    >>> program = jax.make_jaxpr(lambda w, x: x @ w)(jnp.ones((3, 2)), jnp.ones((5, 3)))
    >>> count_program(program, ["w"], batch=5)
    {'w': 12}
    """
    counts: dict[str, int] = {}
    for product in products(program, arguments):
        counts[product.kernel] = counts.get(product.kernel, 0) + product.flops
    return {path: total // batch for path, total in counts.items()}


class Product(NamedTuple):
    """A product of a kernel with what depends on the inputs.

    Attributes:
        eqn: the operation.
        operand: which of its two operands is the kernel, 0 or 1.
        kernel: path of the leaf.
        flops: FLOPs for all examples, at all steps of the loops that it is in.

    >>> Product(None, operand=1, kernel="w", flops=60).kernel
    'w'
    """

    eqn: Any
    operand: int
    kernel: str
    flops: int


def products(program: Any, arguments: Sequence[str | None]) -> list[Product]:
    """Lists the products with kernels in the order of a program.

    Args:
        program: a closed jaxpr.
        arguments: see `count_program`.

    >>> import jax.numpy as jnp
    >>> program = jax.make_jaxpr(lambda w, x: x @ w)(jnp.ones((3, 2)), jnp.ones((5, 3)))
    >>> [(product.operand, product.kernel, product.flops) for product in products(program, ["w"])]
    [(1, 'w', 60)]
    """
    leaves = [_NOTHING if path is None else frozenset({path}) for path in arguments]
    inputs = [frozenset({_INPUTS})] * (len(program.jaxpr.invars) - len(leaves))
    sizes = {
        path: math.prod(var.aval.shape)
        for path, var in zip(arguments, program.jaxpr.invars, strict=False)
        if path is not None
    }
    found: list[Product] = []
    step = functools.partial(_step, found, sizes, 1)
    _jaxprs.walk(program, [*leaves, *inputs], step, constant=lambda value: _NOTHING)
    return found


def _step(
    found: list[Product],
    sizes: Mapping[str, int],
    times: int,
    eqn: Any,
    operands: list[frozenset[Any]],
    where: str,
) -> list[frozenset[Any]] | None:
    """Lists an operation that is carried out so many times, and says what its results depend on.

    `sizes` are the numbers of entries of the leaves, in the order of the arguments.
    """
    if _jaxprs.called(eqn) is not None:
        return None
    if eqn.primitive.name in _MULTIPLY_ADDS:
        for index, (operand, other) in enumerate(zip(operands, operands[::-1], strict=True)):
            if operand and _INPUTS not in operand and _INPUTS in other:
                path = _kernel(operand, math.prod(eqn.invars[index].aval.shape), sizes)
                multiply_adds = _MULTIPLY_ADDS[eqn.primitive.name](eqn)
                found.append(Product(eqn, index, path, 2 * times * multiply_adds))
    if eqn.primitive.name == "scan":
        step = functools.partial(_step, found, sizes, times * eqn.params["length"])
        before = eqn.params["num_consts"]
        after = before + eqn.params["num_carry"]  # the state in between depends on the inputs
        carry = [frozenset({_INPUTS})] * (after - before)
        operands = [*operands[:before], *carry, *operands[after:]]
        return _jaxprs.walk(eqn.params["jaxpr"], operands, step, constant=lambda value: _NOTHING)
    return [_NOTHING.union(*operands)] * len(eqn.outvars)


def _kernel(leaves: frozenset[str], size: int, sizes: Mapping[str, int]) -> str:
    """Of the leaves that a kernel is made of, the one of its size; else the largest."""
    return max(
        (path for path in sizes if path in leaves),
        key=lambda path: (sizes[path] == size, sizes[path]),
    )


def _of_product(eqn: Any) -> int:
    (axes, _), _ = eqn.params["dimension_numbers"]
    summed = math.prod(eqn.invars[0].aval.shape[axis] for axis in axes)
    return summed * math.prod(eqn.outvars[0].aval.shape)


def _of_convolution(eqn: Any) -> int:
    inputs, kernel, result = (var.aval.shape for var in (*eqn.invars, *eqn.outvars))
    numbers, params = eqn.params["dimension_numbers"], eqn.params
    if set(params["lhs_dilation"]) == {1}:
        return math.prod(result) * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    # A transposed one: what meets no zero that was put between its inputs or around them.
    total = math.prod(result[axis] for axis in numbers.out_spec[:2]) * kernel[numbers.rhs_spec[1]]
    for axis, (i, k, o) in enumerate(
        zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    ):
        starts = np.arange(result[o]) * params["window_strides"][axis] - params["padding"][axis][0]
        places = starts[:, None] + np.arange(kernel[k]) * params["rhs_dilation"][axis]
        index, between = np.divmod(places, params["lhs_dilation"][axis])
        total *= int(np.sum((between == 0) & (index >= 0) & (index < inputs[i])))
    return total


def _of_images(eqn: Any) -> int:
    kernel = eqn.invars[1].aval.shape
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel[:-1])


_MULTIPLY_ADDS = {
    "dot_general": _of_product,
    "conv_general_dilated": _of_convolution,
    "conv2d": _of_images,
}
