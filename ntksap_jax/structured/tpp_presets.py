"""The settings that TPP's authors trained with, network by network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import optax

from ntksap_jax.structured.tpp import Settings


class Recipe(NamedTuple):
    """One study: which layers are pruned, the regularised stage, the fine-tuning after it.

    Attributes:
        patterns: the layers that are pruned, for `structured.ratios`, in the names of
            `ntksap_jax.models`.
        batch_size: in both stages.
        weight_decay: of all parameters, normalisation and biases included, in both stages.
        fine_tune_epochs: length of the fine-tuning.
        fine_tune_rates: its learning rates by the epoch (from 0) from which they hold.
        fine_tune_rates_small: those of the study with a tenth of the rate; empty if there is none.
        skip: layers among `patterns` that stay whole.
        settings: what is added to training.
        learning_rate: of the regularised stage, constant.
        momentum: of SGD, in both stages.

    >>> recipe = PRESETS["mlp-linear"]
    >>> recipe.patterns, recipe.batch_size, recipe.fine_tune_rates
    (('hidden_*',), 100, {0: 0.01, 30: 0.001, 60: 0.0001})
    """

    patterns: tuple[str, ...]
    batch_size: int
    weight_decay: float
    fine_tune_epochs: int
    fine_tune_rates: Mapping[int, float]
    fine_tune_rates_small: Mapping[int, float]
    skip: tuple[str, ...] = ()
    settings: Settings = Settings()
    learning_rate: float = 1e-3
    momentum: float = 0.9


PRESETS: dict[str, Recipe] = {
    "mlp-linear": Recipe(
        patterns=("hidden_*",),
        batch_size=100,
        weight_decay=1e-4,
        fine_tune_epochs=90,
        fine_tune_rates={0: 1e-2, 30: 1e-3, 60: 1e-4},
        fine_tune_rates_small={0: 1e-3, 45: 1e-4},
    ),
    "resnet56-cifar10": Recipe(
        patterns=("block_*/conv1",),
        batch_size=128,
        weight_decay=5e-4,
        fine_tune_epochs=120,
        fine_tune_rates={0: 1e-2, 60: 1e-3, 90: 1e-4},
        fine_tune_rates_small={0: 1e-3, 80: 1e-4},
    ),
    "vgg19-cifar100": Recipe(
        patterns=("conv_*",),
        skip=("conv_0",),
        batch_size=256,
        weight_decay=5e-4,
        fine_tune_epochs=120,
        fine_tune_rates={0: 1e-2, 60: 1e-3, 90: 1e-4},
        fine_tune_rates_small={0: 1e-3, 80: 1e-4},
    ),
    "resnet50-imagenet": Recipe(
        settings=Settings(update_interval=5, stabilise_steps=40_000),
        patterns=("stage_*/conv[12]",),
        batch_size=256,
        weight_decay=1e-4,
        fine_tune_epochs=90,
        fine_tune_rates={0: 1e-2, 30: 1e-3, 60: 1e-4, 75: 1e-5},
        fine_tune_rates_small={},
    ),
}
"""From the scripts and README of the released code, and for the MLP from an older repository of the
authors (github.com/MingSun-Tse, TPP and Smile-Pruning)."""


def sgd(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """SGD as PyTorch does it: g += wd·θ; b = μ b + g; θ -= lr·b.

    Args:
        learning_rate: a number, or a schedule by step.
        momentum: μ.
        weight_decay: wd.

    Returns:
        The transformation; its `update` needs `params`.

    >>> import jax.numpy as jnp
    >>> optimizer, params = sgd(0.1, momentum=0.9, weight_decay=0.01), jnp.array([1.0])
    >>> optimizer.update(jnp.array([0.1]), optimizer.init(params), params)[0].tolist()
    [-0.011]
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum)
    )
