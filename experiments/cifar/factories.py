"""From the configuration of a search to the criterion that scores the weights."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from jax.sharding import NamedSharding

from experiments.cifar.choices import CRITERIA
from experiments.cifar.config import SearchConfig
from ntksap_jax import criteria, ntk
from ntksap_jax.types import Network, ScoreFn


def make_score(
    network: Network, search: SearchConfig, *, samples: NamedSharding | None = None
) -> ScoreFn:
    """Makes the criterion that the configuration describes, which is not `dense`.

    `samples` says over which devices those of NTK-SAP are spread; all else takes one device.
    """
    # Density, rounds and what happens to the mask afterwards are not the criterion's affair.
    search = dataclasses.replace(
        search,
        density=1.0,
        scope="global",
        rounds=1,
        rescale=False,
        shuffle_mask=False,
        redraw_weights=False,
    )
    return _make_score(network, search, samples)


@functools.lru_cache(maxsize=32)
def _make_score(network: Network, search: SearchConfig, samples: NamedSharding | None) -> ScoreFn:
    """Kept from one run to the next, with what was compiled for it."""
    criterion, make = CRITERIA[search.criterion], getattr(criteria, search.criterion)
    assert criterion is not None
    options: dict[str, Any] = {}
    if search.criterion == "ntk_sap":
        estimators = {
            "jvp": ntk.jvp,
            "vjp": ntk.vjp,
            "log_vjp": ntk.log_vjp,
            "finite_difference": functools.partial(ntk.finite_difference, sigma=search.sigma),
        }
        options = {
            "estimator": estimators[search.estimator],
            "num_samples": search.num_samples,
            "batch_size": search.noise_batch_size,
            "calibrate": search.calibrate,
            "reinit": search.reinit and search.fresh_share,
            "inputs": search.inputs,
            "shard_samples": samples,
        }
    elif criterion.needs_data:
        options = {"micro_batch_size": search.micro_batch_size}
    score = make(network, **options) if criterion.needs_network else make(**options)
    score = criteria.balanced(score) if search.balanced else score
    return criteria.inverted(score) if search.invert_scores else score
