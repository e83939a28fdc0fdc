r"""FORCE: iterative SNIP in which pruned weights may come back.

    s = |θ ⊙ ∂L/∂(θ ⊙ m)|,    at all weights, pruned ones included.

Source: de Jorge et al., "Progressive skeletonization: trimming more fat from a network at
initialization", ICLR 2021 (FORCE, for foresight connection sensitivity). Needs weights, data and
labels. Search with `ntksap_jax.prune(..., regrow=True)`; without it, pruned weights stay pruned and
FORCE is iterative SNIP.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ntksap_jax import _zeros
from ntksap_jax.criteria import _batches
from ntksap_jax.criteria.snip import connection_sensitivity
from ntksap_jax.types import Batch, Key, Mask, Metrics, Network, Params, ScoreFn, Scores


def force(
    network: Network,
    *,
    loss_fn: _batches.LossFn = _batches.cross_entropy,
    statistics: _batches.Statistics = "train",
    micro_batch_size: int | None = None,
) -> ScoreFn:
    """Makes the FORCE criterion, the only one here whose scores of pruned weights are not 0.

    Args:
        network: as for `snip`, like the other arguments.
        loss_fn: one loss for each example.
        statistics: treatment of batch statistics.
        micro_batch_size: examples at once.

    Returns:
        The criterion; it ignores the key.

    >>> import jax, jax.numpy as jnp
    >>> import ntksap_jax as nts
    >>> params = {"w": jnp.array([[3.0], [4.0]])}
    >>> network = nts.plain(lambda key: params, lambda p, x: x @ p["w"], (2,))
    >>> score = force(network, loss_fn=lambda outputs, labels: outputs[:, 0] * labels)
    >>> mask = {"w": jnp.array([[True], [False]])}
    >>> batch = (jnp.array([[1.0, -2.0]]), jnp.ones(1))
    >>> score(None, params, mask, batch)[0]["w"].ravel().tolist()
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
        return jax.tree.map(jnp.abs, sensitivity(params, mask, batch)), {}

    return _zeros.says(score, network)
