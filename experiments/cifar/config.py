"""The configuration of the main job: what to train on what, how to prune it, how to train it.

The fields are the flags of `python -m experiments.cifar`; `experiments/cifar/presets` holds values.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from experiments.cifar.choices import CRITERIA, MODELS, parse_scope
from experiments.shell import configuration as configuration_lib
from experiments.shell.configuration import (
    Count,
    CountOrZero,
    Folder,
    Positive,
    Text,
    configuration,
    name_of,
)
from experiments.training.config import RunConfig, listed
from experiments.training.config import TrainingConfig as TrainingConfig
from ntksap_jax import scopes

_CRITERION = name_of("criterion", CRITERIA)


@configuration
class SearchConfig:
    """Pruning, before any training."""

    criterion: Annotated[
        str, _CRITERION, listed("Rule that scores the weights (dense prunes nothing)", CRITERIA)
    ] = "ntk_sap"
    density: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Fraction of the prunable weights that is kept, in (0, 1]."""
    rounds: Count = 20
    """Rounds of score and prune; the density falls exponentially from 1 (paper: T). Criteria whose
    source prunes in one shot take one round, whatever this says."""
    scope: str = "global"
    """What one threshold ranges over: global, layer, filter, or N:M such as 2:4; or what is pruned
    as a whole: channels, or block:RxC of inputs x outputs, such as block:4x4."""
    exclude: tuple[Text, ...] = ()
    """Layers that are not pruned: regular expressions that match their path."""
    min_weights: CountOrZero = 0
    """Weights that every layer keeps at least."""
    min_channels: CountOrZero = 0
    """Channels that every layer keeps connected at least, going in and coming out."""
    balanced: bool = False
    """Divide the scores of each layer by their sum, for one threshold to compare layers."""
    rescale: bool = False
    """Before training, scale the weights that each output keeps by sqrt(fan-in / fan-in kept)."""
    samples_per_class: Count = 10
    """Training images of each class for the criteria that need data."""
    micro_batch_size: Count | None = None
    """Images at once for the criteria that need data (None: all)."""
    shuffle_mask: bool = False
    """Sanity check: shuffle the mask within each layer before training."""
    redraw_weights: bool = False
    """Sanity check: train other random weights than those that the mask was found for."""
    invert_scores: bool = False
    """Sanity check: prune the weights with the highest scores instead of the lowest."""
    reinit: bool = True
    """NTK-SAP: score freshly drawn weights (paper); --no-reinit: those that will be trained."""
    fresh_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """NTK-SAP: share of fresh weights in the variance of those that are scored; the rest is that of
    the weights that will be trained."""
    inputs: Literal["noise", "data"] = "noise"
    """NTK-SAP: score on Gaussian noise (paper) or on training images."""
    estimator: Literal["jvp", "vjp", "log_vjp", "finite_difference"] = "jvp"
    """NTK-SAP: how the trace of the NTK is estimated (authors' code: finite_difference)."""
    sigma: Positive = 0.01
    """NTK-SAP, finite_difference only: standard deviation of the weight perturbation."""
    num_samples: Count = 5
    """NTK-SAP: draws of weights, inputs and probe in a round."""
    noise_batch_size: Annotated[int, Field(ge=2, lt=2**31)] = 100
    """NTK-SAP: Gaussian inputs in a draw."""
    calibrate: Literal["one_pass", "two_pass"] = "one_pass"
    """NTK-SAP: how batch statistics are taken (authors' code: two_pass)."""

    @property
    def needs_data(self) -> bool:
        """Whether the search looks at training images."""
        criterion = CRITERIA[self.criterion]
        data_for_ntk_sap = self.criterion == "ntk_sap" and self.inputs == "data"
        return criterion is not None and (criterion.needs_data or data_for_ntk_sap)

    @property
    def num_rounds(self) -> int:
        """The number of rounds that the search takes: one for one-shot criteria."""
        criterion = CRITERIA[self.criterion]
        return 1 if criterion is not None and criterion.one_shot else self.rounds

    @field_validator("fresh_share")
    @classmethod
    def _of_fresh_weights(cls, value: float, info: ValidationInfo) -> float:
        if value < 1 and not info.data.get("reinit", True):
            raise ValueError("expected 1 with --no-reinit, which scores no fresh weights")
        return value

    @field_validator("scope")
    @classmethod
    def _keeps_the_density(cls, value: str, info: ValidationInfo) -> str:
        scope, density = parse_scope(value), info.data.get("density", 1)
        if isinstance(scope, scopes.NofM) and info.data.get("criterion") != "dense":
            kept = scope.n / scope.m
            if not math.isclose(density, kept):
                raise ValueError(f"expected --density {kept:g} with it, not {density:g}")
        return value

    @field_validator("min_weights", "min_channels")
    @classmethod
    def _goes_with_the_scope(cls, value: int, info: ValidationInfo) -> int:
        if "scope" in info.data:
            parse_scope(info.data["scope"], **{str(info.field_name): value})
        return value


@configuration
class Config(RunConfig):
    """Prune a network before training, and train what is left."""

    model: Annotated[str, name_of("model", MODELS), listed("Network", MODELS)] = "resnet20"
    weights: Folder | None = None
    """Start from the trained weights of this run folder (None: random weights)."""
    spectrum_samples: CountOrZero = 0
    """Images of each class on which the spectrum of the NTK is measured before training and after
    every epoch (paper: 10; 0: not measured)."""
    search: SearchConfig = SearchConfig()
    training: TrainingConfig = TrainingConfig()
    compare: Annotated[
        tuple[Annotated[str, _CRITERION], ...],
        listed("Criteria to run in the same way, for comparison", CRITERIA, metavar="[NAME ...]"),
    ] = ()


def with_criterion(config: Config, criterion: str) -> Config:
    """Returns the configuration of one run: with this criterion, and nothing to compare with.

    Of the dense network there is one: no density, and no sanity check of a mask.
    """
    search = dataclasses.replace(config.search, criterion=criterion)
    if criterion == "dense":
        search = dataclasses.replace(
            search,
            density=1.0,
            balanced=False,
            rescale=False,
            shuffle_mask=False,
            redraw_weights=False,
            invert_scores=False,
        )
    return dataclasses.replace(config, search=search, compare=())


def variants(search: SearchConfig) -> list[str]:
    """Returns the sanity checks that a run makes, in one word each."""
    words = ("shuffled", "redrawn", "inverted")
    asked = (search.shuffle_mask, search.redraw_weights, search.invert_scores)
    return [word for word, is_asked in zip(words, asked, strict=True) if is_asked]


def run_name(config: Config) -> str:
    """Returns the name of the run folder, such as `cifar10-resnet20-ntk_sap-0.05-seed0`."""
    search = config.search
    scope = search.scope.replace(":", "-") if search.scope != "global" else ""
    parts = [
        config.dataset,
        f"{config.image_size}px" if config.image_size else "",
        config.model,
        search.criterion,
        scope,
        *variants(search),
        f"{search.density:.4g}",
        config.label,
        f"seed{config.seed}",
    ]
    return "-".join(part for part in parts if part)


def from_dict(values: Any, where: str = "the configuration") -> Config:
    """Returns the configuration of a run from its config.json; what is missing has defaults.

    Args:
        values: from JSON, whoever wrote it.
        where: names them in messages.

    Raises:
        UserError: an unknown field, or a value of the wrong type; the message names the field.
    """
    search = values.get("search") if isinstance(values, dict) else None
    if isinstance(search, dict) and search.get("vmap_samples") == 1:  # An option of version 0.1.
        search = {name: search[name] for name in search if name != "vmap_samples"}
        values = {**values, "search": search}
    return configuration_lib.read(Config, values, where)
