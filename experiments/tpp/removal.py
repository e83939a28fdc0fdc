"""The moment of pruning: filters are cut out of the network, and what is left is prepared."""

from __future__ import annotations

import math
from typing import Any

from experiments.shell.errors import UserError
from experiments.tpp import job as job_lib
from experiments.tpp.config import Config, method_of
from experiments.tpp.job import Job
from experiments.tpp.measure import Network
from experiments.tpp.selection import Keep
from ntksap_jax import structured
from ntksap_jax.structured import trainability


def remove(config: Config, job: Job, variables: Any, keep: Keep) -> Network:
    """Returns the small network: the weights at hand, OrthP's, or fresh ones.

    Raises:
        UserError: filters that cannot go.
    """
    method = method_of(config)
    if not method.prunes:
        return Network(job.model, variables)
    try:
        model, small = structured.shrink(job.model, variables, job.channels, keep)
    except ValueError as error:
        raise UserError(f"--method {config.method}: {error}") from error
    if method.redraw:
        small = job_lib.init_variables(config, job, model, job_lib.make_keys(config.seed).redrawn)
    if method.orthp:
        channels = structured.trace(model, job.images.dataset.image_shape, train=False)
        gain = 1.0 if job.is_linear else math.sqrt(2)
        small = {**small, "params": trainability.orthp(small["params"], channels, gain=gain)}
    return Network(model, small)
