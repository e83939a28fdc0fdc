r"""Trainability: the singular values of a network's input-output Jacobian, and how to restore them.

A network whose Jacobian singular values (JSV) lie around 1 passes gradients on undiminished;
pruning shrinks them by orders of magnitude, and fine-tuning recovers them slowly. `orthp` recovers
them by force, as an oracle.

Source: Wang and Fu, "Trainability preserving neural pruning", ICLR 2023, section 4.1, after Saxe,
McClelland, Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
networks", ICLR 2014. One difference: the released code measures in training mode, where batch
normalisation mixes the examples, so that its numbers are no example's Jacobian; measure in
evaluation mode.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntksap_jax._precision import scoring_precision
from ntksap_jax.structured import _leaves
from ntksap_jax.structured.channels import Channels
from ntksap_jax.types import ApplyFn, Params


def jacobian_singular_values(
    apply: ApplyFn, params: Params, inputs: jax.Array, *, batch_size: int | None = None
) -> jax.Array:
    """Returns the singular values of ∂outputs/∂input at every input.

    Args:
        apply: `apply(params, inputs) -> outputs` in evaluation mode, where no example influences
            another: `network.apply_running` of a `Network` with the trained batch statistics, or
            `lambda variables, x: model.apply(variables, x, train=False)` with the variables as
            `params`.
        params: the weights.
        inputs: (N, ...), floating point.
        batch_size: inputs at once, to save memory: the Jacobian of each has as many entries as
            outputs times inputs.

    Returns:
        (N, min(outputs, inputs)), in descending order.

    Raises:
        ValueError: inputs without a batch axis, or a batch size below 1.
        TypeError: inputs that are not floating point.

    >>> matrix = jnp.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    >>> jacobian_singular_values(lambda w, x: x @ w, matrix, jnp.ones((2, 3))).tolist()
    [[4.0, 3.0], [4.0, 3.0]]
    """
    inputs = jnp.asarray(inputs)
    if inputs.ndim < 2 or not len(inputs):
        raise ValueError(
            f"inputs: got shape {inputs.shape}, expected (N, ...), N at least 1. Add the batch "
            "axis with x[None]."
        )
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise TypeError(f"inputs: got {inputs.dtype}, expected floating point, to differentiate.")
    if batch_size is not None and not batch_size >= 1:
        raise ValueError(f"batch_size: got {batch_size!r}, expected at least 1.")
    size = len(inputs) if batch_size is None else batch_size

    def of_example(params: Params, example: jax.Array) -> jax.Array:
        def outputs(example: jax.Array) -> jax.Array:
            return apply(params, example[None]).reshape(-1)

        rows = jax.jacrev(outputs)(example)
        return jnp.linalg.svd(rows.reshape(len(rows), -1), compute_uv=False)

    of_batch = jax.jit(jax.vmap(of_example, in_axes=(None, 0)))
    with scoring_precision():
        pieces = [of_batch(params, inputs[i : i + size]) for i in range(0, len(inputs), size)]
    return jnp.concatenate(pieces)


def linear_singular_values(params: Params, channels: Channels) -> jax.Array:
    """Returns the singular values of a linear network's Jacobian, the product of its kernels.

    No data: the Jacobian is the same everywhere, and biases do not matter.

    Args:
        params: the weights.
        channels: the network's channels: dense layers, with nothing but biases between them.

    Returns:
        (min(outputs, inputs),), in descending order.

    Raises:
        ValueError: a layer that is not dense, or whose inputs are not the outputs of the last.

    >>> import flax.linen as nn
    >>> from ntksap_jax import structured
    >>> channels = structured.trace(nn.Sequential([nn.Dense(2), nn.Dense(2)]), (2,))
    >>> params = {"layers_0": {"kernel": jnp.diag(jnp.array([2.0, 3.0]))},
    ...           "layers_1": {"kernel": 2 * jnp.eye(2)}}
    >>> linear_singular_values(params, channels).tolist()
    [6.0, 4.0]
    """
    product: Any = None
    for path, kernel in _leaves.kernels(params, channels).items():
        if kernel.ndim != 2 or (product is not None and product.shape[1] != kernel.shape[0]):
            raise ValueError(
                f"channels: {path!r} has a kernel {kernel.shape}, expected dense layers, each on "
                "the outputs of the one before. For other networks use jacobian_singular_values."
            )
        product = kernel if product is None else jnp.matmul(product, kernel, precision="highest")
    return jnp.linalg.svd(product, compute_uv=False)


class Spectrum(NamedTuple):
    """Jacobian singular values in a few numbers.

    Attributes:
        mean: over all examples and values.
        std: standard deviation (population) over the same.
        squared_distance: mean of (s - 1)².
        condition_number: mean over examples of the largest value by the smallest; examples where
            that is 0 by 0 do not count.

    >>> spectrum = summarise(jnp.array([[3.0, 1.0], [2.0, 2.0]]))
    >>> float(spectrum.mean), float(spectrum.condition_number)
    (2.0, 2.0)
    """

    mean: jax.Array
    std: jax.Array
    squared_distance: jax.Array
    condition_number: jax.Array


def summarise(values: jax.Array) -> Spectrum:
    """Summarises singular values, (N, k) or (k,), of all examples.

    >>> [float(number) for number in summarise(jnp.array([[3.0, 1.0], [2.0, 2.0]]))]
    [2.0, 0.7071, 1.5, 2.0]
    """
    values = jnp.atleast_2d(values)
    return Spectrum(
        mean=jnp.mean(values),
        std=jnp.std(values),
        squared_distance=jnp.mean((values - 1) ** 2),
        condition_number=jnp.nanmean(jnp.max(values, axis=1) / jnp.min(values, axis=1)),
    )


def orthp(params: Params, channels: Channels, *, gain: float = 1.0) -> Params:
    r"""Replaces every kernel by the orthogonal factor of its QR decomposition (OrthP).

    With a row of W for each filter: W (if it is wide, Wᵀ) = Q R, the signs such that R's diagonal
    is positive, and Q (Qᵀ) times the gain replaces W. All singular values of the Jacobian of
    a linear network of non-increasing widths are then 1. Depends on the order of weights and
    filters: those of the released code (in, H, W). Biases and normalisation stay.

    Args:
        params: the weights of the (pruned and shrunk) network.
        channels: its channels; all layers are orthogonalised.
        gain: 1 for linear networks; √2 for those with ReLU.

    Returns:
        New params.

    Raises:
        ValueError: params that do not fit the layers, or a gain that is not positive.

    >>> import flax.linen as nn
    >>> from ntksap_jax import structured
    >>> channels = structured.trace(nn.Sequential([nn.Dense(2), nn.Dense(1)]), (2,))
    >>> params = {"layers_0": {"kernel": jnp.array([[0.0, -2.0], [3.0, 1.0]])},
    ...           "layers_1": {"kernel": jnp.ones((2, 1))}}
    >>> orthp(params, channels, gain=2.0)["layers_0"]["kernel"].tolist()
    [[0.0, -2.0], [2.0, 0.0]]
    """
    if not gain > 0:
        raise ValueError(f"gain: got {gain!r}, expected a positive number: 1, or sqrt(2) for ReLU.")
    kernels = _leaves.kernels(params, channels)
    return _leaves.replace(params, {p: _orthogonal(k) * gain for p, k in kernels.items()})


def _orthogonal(kernel: jax.Array) -> jax.Array:
    spatial = tuple(range(kernel.ndim - 2))
    filters_first = jnp.transpose(kernel, (kernel.ndim - 1, kernel.ndim - 2, *spatial))
    rows = filters_first.reshape(len(filters_first), -1)
    wide = rows.shape[0] < rows.shape[1]
    q, r = jnp.linalg.qr(
        (rows.T if wide else rows).astype(jnp.promote_types(rows.dtype, "float32"))
    )
    # sign(0) would empty a column of a kernel without full rank.
    q = q * jnp.where(jnp.diag(r) < 0, -1, 1).astype(q.dtype)
    q = (q.T if wide else q).astype(kernel.dtype).reshape(filters_first.shape)
    return jnp.transpose(q, (*(axis + 2 for axis in spatial), 1, 0))
