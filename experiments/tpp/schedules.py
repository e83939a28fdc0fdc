"""Optimisers of the stages: SGD as PyTorch has it, with learning rates that drop by epoch."""

from __future__ import annotations

from collections.abc import Sequence

import optax

from experiments.tpp.config import Config
from ntksap_jax.structured import tpp_presets


def drops(rate: float, epochs: Sequence[int], *, steps_per_epoch: int) -> optax.Schedule:
    """Returns the learning rate by step: times 0.1 after each of the epochs."""
    return optax.piecewise_constant_schedule(
        rate, {epoch * steps_per_epoch: 0.1 for epoch in epochs}
    )


def sgd(config: Config, learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Makes the optimiser of a stage."""
    return tpp_presets.sgd(
        learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
