r"""Iterative SNIP: SNIP scored anew in every round, for what is left; what is pruned stays pruned.

    s = |θ ⊙ m ⊙ ∂L/∂(θ ⊙ m)|,    round by round, along an exponential schedule.

Source: de Jorge, Sanyal, Behl, Torr, Rogez, Dokania, "Progressive skeletonization: trimming more
fat from a network at initialization", ICLR 2021 ("Iterative SNIP", beside their own FORCE); and
Verdenius et al., "Pruning via iterative ranking of sensitivity statistics", 2020. Needs
weights, data and labels.
"""

from __future__ import annotations

from ntksap_jax.criteria import _batches
from ntksap_jax.criteria.snip import snip
from ntksap_jax.types import Network, ScoreFn


def iterative_snip(
    network: Network,
    *,
    loss_fn: _batches.LossFn = _batches.cross_entropy,
    statistics: _batches.Statistics = "train",
    micro_batch_size: int | None = None,
    signed: bool = False,
) -> ScoreFn:
    """Makes the iterative SNIP criterion: `snip`, under its name for searches of many rounds.

    A round of SNIP at the current mask *is* a round of iterative SNIP; what differs is the number
    of rounds, which the schedule sets: `schedules.exponential(density, rounds=100)`.

    Args:
        network: as for `snip`, like the other arguments.
        loss_fn: one loss for each example.
        statistics: treatment of batch statistics.
        micro_batch_size: examples at once.
        signed: leave out the absolute value, for the scores of whole filters.

    Returns:
        The criterion.

    >>> import jax, jax.numpy as jnp
    >>> from ntksap_jax import masks
    >>> import ntksap_jax as nts
    >>> params = {"w": jnp.array([[3.0], [4.0]])}
    >>> network = nts.plain(lambda key: params, lambda p, x: x @ p["w"], (2,))
    >>> score = iterative_snip(network, loss_fn=lambda outputs, labels: outputs[:, 0] * labels)
    >>> mask = {"w": jnp.array([[True], [False]])}
    >>> batch = (jnp.array([[1.0, -2.0]]), jnp.ones(1))
    >>> score(None, params, mask, batch)[0]["w"].ravel().tolist()
    [3.0, 0.0]
    """
    return snip(
        network,
        loss_fn=loss_fn,
        statistics=statistics,
        micro_batch_size=micro_batch_size,
        signed=signed,
    )
