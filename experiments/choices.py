"""What the command line can choose from, by name: networks and criteria."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn

from ntksap_jax import criteria, models, ntk
from ntksap_jax.types import Network, ScoreFn

if TYPE_CHECKING:
    from experiments.config import SearchConfig

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": models.mlp,
    "linear_mlp": models.linear_mlp,
    "resnet8": functools.partial(models.cifar_resnet, 8),
    "resnet20": models.resnet20,
    "resnet32": models.resnet32,
    "resnet56": models.resnet56,
    "vgg16_bn": models.vgg16_bn,
    "vgg19_bn": models.vgg19_bn,
    "resnet18": models.resnet18,
    "resnet34": models.resnet34,
    "resnet50": models.resnet50,
    "resnet18_small_stem": functools.partial(models.resnet18, stem="small"),
    "resnet34_small_stem": functools.partial(models.resnet34, stem="small"),
    "resnet50_small_stem": functools.partial(models.resnet50, stem="small"),
}
"""Name to a function of `num_classes` that makes the network."""


def ntk_sap(network: Network, search: SearchConfig) -> ScoreFn:
    """Makes the NTK-SAP criterion that the configuration describes."""
    estimators: dict[str, Any] = {
        "jvp": ntk.jvp,
        "vjp": ntk.vjp,
        "finite_difference": functools.partial(ntk.finite_difference, sigma=search.sigma),
    }
    return criteria.ntk_sap(
        network,
        estimator=estimators[search.estimator],
        num_samples=search.num_samples,
        vmap_samples=search.vmap_samples,
        batch_size=search.noise_batch_size,
        calibrate=search.calibrate,
    )


CRITERIA: dict[str, Callable[[Network, SearchConfig], ScoreFn] | None] = {
    "ntk_sap": ntk_sap,
    "random": lambda network, search: criteria.random(),
    "magnitude": lambda network, search: criteria.magnitude(),
    "dense": None,
}
"""Name to a function that makes the criterion; `None` prunes nothing."""
