"""Random: keep weights drawn uniformly from the network. Needs nothing; the baseline to beat."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ntksap_jax import masks
from ntksap_jax._draws import random_like
from ntksap_jax.types import Batch, Key, Mask, Metrics, Params, ScoreFn, Scores


def random() -> ScoreFn:
    """Scores a weight by a uniform random number in (0, 1].

    With a global threshold every layer then has the same expected density. (Frankle et al., ICLR
    2021, use it as the lower bound.)

    Returns:
        The criterion; it ignores the params and the batch.

    >>> import jax, jax.numpy as jnp
    >>> scores, _ = random()(jax.random.key(0), None, {"kernel": jnp.array([True, False])}, None)
    >>> bool(scores["kernel"][0] > 0), float(scores["kernel"][1])
    (True, 0.0)
    """

    def score(key: Key, params: Params, mask: Mask, batch: Batch) -> tuple[Scores, Metrics]:
        del params, batch
        floats = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, jnp.float32), mask)
        drawn = random_like(key, floats, jax.random.uniform)
        return masks.map_prunable(lambda m, u: (1 - u) * m, mask, drawn), {}

    return score
