"""What a network costs to evaluate: floating-point operations, dense and under a mask.

Counted as in TPP's tables: 2 FLOPs for each multiply-add of a kernel, per example; biases,
normalisation, activations and pools are free. `structured.cost` counts the same way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ntksap_jax import _jaxprs, masks
from ntksap_jax.types import Mask, Network

_INPUTS = object()
"""What depends on the inputs. (A leaf, or what is made of it, is its path; a constant is None.)"""

_MIXED = object()
"""What depends on several leaves alone."""


def count(network: Network) -> dict[str, int]:
    """Counts the FLOPs of every kernel for one example by tracing the network; nothing is computed.

    A kernel is whatever parameter the network multiplies activations by in a convolution or a
    matrix product. Products of activations, as in attention, belong to no kernel and do not count.

    Args:
        network: the model, of any framework. A kernel that is used several times counts every time,
            one in a `jax.lax.scan` at each step. Kernels in `while` and `cond` are not counted.

    Returns:
        FLOPs by path of the kernel in the params, in the order of the forward pass.

    >>> import flax.linen as nn
    >>> import ntksap_jax as nts
    >>> count(nts.linen(nn.Sequential([nn.Dense(10), nn.relu, nn.Dense(2)]), (100,)))
    {'layers_0/kernel': 2000, 'layers_2/kernel': 40}
    """
    params = jax.eval_shape(network.init, jax.random.key(0))
    inputs = jax.ShapeDtypeStruct((1, *network.input_shape), network.input_dtype)
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
    inputs = [_INPUTS] * (len(program.jaxpr.invars) - len(arguments))
    step = functools.partial(_step, counts, 1)
    _jaxprs.walk(program, [*arguments, *inputs], step, constant=lambda value: None)
    return {path: total // batch for path, total in counts.items()}


def _step(
    counts: dict[str, int], times: int, eqn: Any, operands: list[Any], where: str
) -> list[Any] | None:
    """Counts an operation that is carried out so many times, and says what its results are."""
    if _jaxprs.called(eqn) is not None:
        return None
    sources = {operand for operand in operands if operand is not None}
    leaves = sources - {_INPUTS, _MIXED}
    if eqn.primitive.name in _MULTIPLY_ADDS and leaves and _INPUTS in sources:
        [path] = leaves
        entries = _MULTIPLY_ADDS[eqn.primitive.name](eqn) * math.prod(eqn.outvars[0].aval.shape)
        # The zeros that a transposed convolution puts between its inputs cost nothing.
        entries //= math.prod(eqn.params.get("lhs_dilation") or (1,))
        counts[path] = counts.get(path, 0) + 2 * times * entries
    if eqn.primitive.name == "scan":
        step = functools.partial(_step, counts, times * eqn.params["length"])
        before = eqn.params["num_consts"]
        after = before + eqn.params["num_carry"]  # the state in between depends on the inputs
        operands = [*operands[:before], *[_INPUTS] * (after - before), *operands[after:]]
        return _jaxprs.walk(eqn.params["jaxpr"], operands, step, constant=lambda value: None)
    mixed = _INPUTS if _INPUTS in sources else _MIXED
    result = next(iter(sources), None) if len(sources) < 2 else mixed
    return [result] * len(eqn.outvars)


def _summed(eqn: Any) -> int:
    """Number of products that are summed to an entry of a matrix product."""
    (axes, _), _ = eqn.params["dimension_numbers"]
    return math.prod(eqn.invars[0].aval.shape[axis] for axis in axes)


def _window(kernel: Any, axis: int) -> int:
    """Entries of a convolution's kernel for one of its filters, which lie along an axis."""
    return math.prod(kernel.aval.shape) // kernel.aval.shape[axis]


_MULTIPLY_ADDS = {
    "dot_general": _summed,
    "conv_general_dilated": lambda eqn: _window(
        eqn.invars[1], eqn.params["dimension_numbers"].rhs_spec[0]
    ),
    "conv2d": lambda eqn: _window(eqn.invars[1], -1),
}
"""For one entry of the results."""
