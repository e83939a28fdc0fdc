r"""SNIP: keep the connections whose removal would change the loss most, to first order.

    s = |∂L/∂m| at m = 1  =  |θ ⊙ ∂L/∂θ|,    L the mean loss on a batch of labelled data.

Source: Lee, Ajanthan, Torr, "SNIP: Single-shot network pruning based on connection sensitivity",
ICLR 2019, Algorithm 1: one shot, on weights before training, in training mode. Their division by
the sum of all scores changes no ranking and is left out. Needs weights, data and labels.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ntksap_jax import _networks, _zeros, masks
from ntksap_jax._precision import scoring_precision
from ntksap_jax.criteria import _batches
from ntksap_jax.types import Batch, Key, Mask, Metrics, Network, Params, ScoreFn, Scores


def snip(
    network: Network,
    *,
    loss_fn: _batches.LossFn = _batches.cross_entropy,
    statistics: _batches.Statistics = "train",
    micro_batch_size: int | None = None,
    signed: bool = False,
) -> ScoreFn:
    """Makes the SNIP criterion: |θ ∂L/∂θ| on the given weights and batch.

    Args:
        network: the model, from `ntksap_jax.linen`, `nnx` or `plain`.
        loss_fn: `loss_fn(outputs, labels) -> losses`, one for each example; by default softmax
            cross-entropy with integer labels.
        statistics: batch normalisation by the batch's statistics with derivatives through them,
            `"train"` (the source), or held `"constant"`, or by `"running"` averages.
        micro_batch_size: examples at once, to save memory. The score is that of the whole batch
            (but for batch statistics, which are those of the micro-batch).
        signed: leave out the absolute value: the derivatives themselves, to be summed over whole
            filters (`structured.by_gate`). They do not rank single weights.

    Returns:
        The criterion; it ignores the key. Its metrics hold nothing.

    Raises:
        ValueError, TypeError: an option out of range. When called: no labelled batch.

    >>> import jax, jax.numpy as jnp
    >>> import ntksap_jax as nts
    >>> params = {"w": jnp.array([[3.0], [4.0]])}
    >>> network = nts.plain(lambda key: params, lambda p, x: x @ p["w"], (2,))
    >>> score = snip(network, loss_fn=lambda outputs, labels: outputs[:, 0] * labels)
    >>> scores, _ = score(None, params, masks.create(params), (jnp.array([[1.0, -2]]), jnp.ones(1)))
    >>> scores["w"].ravel().tolist()  # |θ x|
    [3.0, 8.0]
    """
    sensitivity = connection_sensitivity(
        network,
        loss_fn=loss_fn,
        statistics=statistics,
        micro_batch_size=micro_batch_size,
    )

    def score(key: Key, params: Params, mask: Mask, batch: Batch) -> tuple[Scores, Metrics]:
        del key
        derivatives = sensitivity(params, mask, batch)
        size = (lambda d: d) if signed else jnp.abs
        return masks.map_prunable(lambda m, d: size(d) * m, mask, derivatives), {}

    return _zeros.says(score, network)


def connection_sensitivity(
    network: Network,
    *,
    loss_fn: _batches.LossFn,
    statistics: _batches.Statistics,
    micro_batch_size: int | None,
) -> Any:
    """Makes a function of (params, mask, batch) that returns θ ∂L/∂(θ⊙m) at *all* weights.

    At a pruned weight its size is what the loss would change by if the weight came back (FORCE);
    SNIP drops it.
    """
    _batches.check_network(network)
    if loss_fn is _batches.cross_entropy:
        _networks.check_one_output(network)
    _batches.check_micro_batch_size(micro_batch_size)
    apply = _batches.apply_with(network, statistics)

    @jax.jit
    def gradient(params: Params, mask: Mask, batch: Batch, total: int) -> Any:
        weights = _batches.kept_weights(mask, params)
        return _batches.loss_gradient(apply, weights, params, batch, loss_fn=loss_fn, total=total)

    def sensitivity(params: Params, mask: Mask, batch: Batch) -> Scores:
        masks.check(mask, params)
        _batches.check_batch(network, batch, labels=True, why="the score is of a loss")
        _batches.check_labels(network, params, batch, loss_fn)
        gradients, total = None, _batches.num_examples(batch[0])
        with scoring_precision():
            for part in _batches.micro_batches(tuple(batch), micro_batch_size):
                gradients = _batches.add(gradients, gradient(params, mask, part, total))
        return masks.map_prunable(lambda m, p, g: jnp.real(p * g), mask, params, gradients)

    return sensitivity
