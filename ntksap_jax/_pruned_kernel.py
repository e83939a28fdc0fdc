"""The exact neural tangent kernel of a pruned network, in blocks that fit into memory."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax import _checks, _networks, masks
from ntksap_jax.types import Mask, Network, Params

MAX_BYTES = 3 * 2**30
"""Memory for the rows of the Jacobian: all of them, or two blocks at a time."""

COLUMNS = 2**15
"""Columns of the Jacobian that are multiplied at a time."""


def pruned_kernel(
    network: Network, params: Params, mask: Mask, inputs: Any, *, max_bytes: int = MAX_BYTES
) -> np.ndarray:
    """Computes the NTK of a pruned network, Θ(m) = J diag(m) Jᵀ, block by block.

    J is the Jacobian of all outputs at θ ⊙ m. Normalisation uses the statistics of the inputs, held
    constant, so that an output depends on its own example only. The rows of J are then computed
    example by example, at the cost of one backward pass for each output, and without the columns of
    pruned weights. If they do not fit into memory together, some of them are computed again.

    `exact` is the kernel with respect to all params of any function, at a greater cost.

    Args:
        network: the model; its output must be one array.
        params: the weights θ; they need not be masked.
        mask: the mask m.
        inputs: N examples, as the network takes them.
        max_bytes: memory of the host for rows of J.

    Returns:
        float32 array (N · outputs, N · outputs): example by example, output by output.

    Raises:
        ValueError, TypeError: a mask that does not fit the params; complex params.

    >>> import jax.numpy as jnp
    >>> import ntksap_jax as nts
    >>> params = {"w": jnp.array([[3.0], [4.0]])}
    >>> network = nts.plain(lambda key: params, lambda p, x: x @ p["w"], (2,))
    >>> mask, inputs = {"w": jnp.array([[True], [False]])}, jnp.array([[1.0, 2.0], [5.0, 6.0]])
    >>> pruned_kernel(network, params, mask, inputs).tolist()
    [[1.0, 5.0], [5.0, 25.0]]
    """
    masks.check(mask, params)
    _networks.check_one_output(network)
    _checks.real(params, why="This kernel is of")
    # On one device, wherever they are: the work is too small to be spread.
    params, mask, inputs = jax.tree.map(jnp.asarray, jax.device_get((params, mask, inputs)))
    kept = {path: np.flatnonzero(leaf) for path, leaf in masks.leaf_paths(mask).items()}
    row_bytes = 4 * sum(map(len, kept.values()))
    outputs = jax.eval_shape(network.apply, params, inputs[:1]).size
    num_rows = len(inputs) * outputs
    num_blocks = 1
    if num_rows * row_bytes > max_bytes:
        num_blocks = min(len(inputs), -(-2 * num_rows * row_bytes // max_bytes))

    def rows(examples: np.ndarray) -> np.ndarray:
        part = np.empty((len(examples) * outputs, row_bytes // 4), np.float32)
        for i, index in enumerate(examples):
            of_example = masks.leaf_paths(_jacobian(params, mask, inputs, index, network=network))
            place = part[i * outputs : (i + 1) * outputs]
            np.concatenate(
                [np.asarray(of_example[path])[:, columns] for path, columns in kept.items()],
                axis=1,
                out=place,
            )
        return part

    blocks = np.array_split(np.arange(len(inputs)), num_blocks)
    theta = np.empty((num_rows, num_rows), np.float32)
    for number, examples in enumerate(blocks):
        mine, ours = rows(examples), _slice(examples, outputs)
        theta[ours, ours] = _products(mine, mine)
        for others in blocks[:number]:
            theirs = _slice(others, outputs)
            theta[ours, theirs] = _products(mine, rows(others))
            theta[theirs, ours] = theta[ours, theirs].T
    return theta


def _slice(examples: np.ndarray, outputs: int) -> slice:
    return slice(examples[0] * outputs, (examples[-1] + 1) * outputs)


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns a bᵀ, by some columns at a time: the device gets copies of no more."""
    parts = (slice(start, start + COLUMNS) for start in range(0, a.shape[1], COLUMNS))
    products = (np.asarray(_product(a[:, part], b[:, part])) for part in parts)
    return sum(products, np.zeros((len(a), len(b)), np.float32))


@jax.jit
def _product(a: Any, b: Any) -> jax.Array:
    return jnp.matmul(a, b.T, precision="highest")


@functools.partial(jax.jit, static_argnames="network")
def _jacobian(params: Params, mask: Mask, inputs: Any, index: Any, *, network: Network) -> Any:
    """Returns the outputs x weights Jacobian of one example, a matrix for each prunable leaf.

    One example at a time: with several, XLA computes the gradients of their kernels by grouped
    convolutions, three times slower on CPU. The mask is an argument, so that all criteria share one
    compilation.
    """
    with jax.default_matmul_precision("highest"):
        apply = network.calibrate(masks.apply(mask, params), inputs, unbiased=False)

        def outputs(weights: Any) -> jax.Array:
            merged = masks.apply(mask, masks.merge(weights, params))
            return apply(merged, inputs[index][None]).ravel()

        weights = masks.map_prunable(lambda keep, p: p, mask, params)
        jacobian = jax.jacrev(outputs)(weights)
        return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], -1), jacobian)
