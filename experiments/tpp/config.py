"""The configuration of `experiments.tpp`: its fields are the flags, `presets.py` holds values."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from experiments.shell.configuration import (
    Count,
    CountOrZero,
    Epochs,
    Folder,
    NotNegative,
    Positive,
    Text,
    configuration,
    name_of,
)
from experiments.tpp.methods import METHODS
from experiments.tpp.networks import ARCHITECTURES
from experiments.training.config import RunConfig, listed
from ntksap_jax.structured import tpp

_METHOD = name_of("method", METHODS)
_Share = Annotated[float, Field(gt=0, lt=1)]
_BUDGETS = ("flops_budget", "params_budget", "latency_budget")


class Recipe(NamedTuple):
    """Epochs and learning rates of a training without penalty."""

    epochs: int
    learning_rate: float
    drop_epochs: tuple[int, ...]


@configuration
class PretrainConfig:
    """Training of the dense network; of one that is pruned before training too."""

    pretrain_epochs: Count = 200
    """Passes over the training set."""
    pretrain_lr: Positive = 0.1
    """Learning rate at first."""
    pretrain_drop_epochs: Epochs = (100, 150)
    """Epochs after which it is multiplied by 0.1."""

    @property
    def recipe(self) -> Recipe:
        """How the dense network is trained, and a small one that starts untrained."""
        return Recipe(self.pretrain_epochs, self.pretrain_lr, self.pretrain_drop_epochs)


@configuration
class RegulariseConfig:
    """Training with a penalty, before filters are removed; see `ntksap_jax.structured.tpp`."""

    reg_lr: Positive = 1e-3
    """Learning rate, constant."""
    gram_weight: NotNegative = 1000.0
    """TPP: factor of the Gram penalty."""
    update_interval: Count = 10
    """TPP, greg1: steps between two increments of the strength."""
    increment: Positive = 1e-4
    """TPP, greg1: how much the strength grows at each, from 0 to 1."""
    stabilise_steps: CountOrZero = 10_000
    """TPP, greg1: further steps at strength 1."""
    zero_out_interval: CountOrZero = 100
    """TPP: steps from one layer's filters being set to zero to the next layer's (0: never)."""
    orth_steps: Count = 50_000
    """kernorth-l1, orthconv-l1: steps with the penalty."""
    orth_weight: NotNegative = 0.1
    """kernorth-l1, orthconv-l1: factor of the penalty."""
    orth_stride: Count = 2
    """orthconv-l1: stride of the convolution of filters with filters (published: 2; 1 has the
    identity at shift 0)."""

    @property
    def settings(self) -> tpp.Settings:
        """What TPP adds to training."""
        names = ("gram_weight", "update_interval", "increment", "stabilise_steps")
        values = {name: getattr(self, name) for name in names}
        return tpp.Settings(**values, zero_out_interval=self.zero_out_interval or None)


@configuration
class FinetuneConfig:
    """Training of the small network, without penalty."""

    finetune_epochs: Count = 120
    """Passes over the training set."""
    finetune_lr: Positive = 1e-2
    """Learning rate at first."""
    finetune_drop_epochs: Epochs = (60, 90)
    """Epochs after which it is multiplied by 0.1."""
    small_lr_drop_epochs: Epochs = (80,)
    """The same for a --finetune-lr of 0.001 or less."""

    @property
    def recipe(self) -> Recipe:
        """How the small network is fine-tuned."""
        small = self.finetune_lr <= 1e-3
        drop_epochs = self.small_lr_drop_epochs if small else self.finetune_drop_epochs
        return Recipe(self.finetune_epochs, self.finetune_lr, drop_epochs)


@configuration
class SearchConfig:
    """Pruning before training (ntk-sap, snip, synflow)."""

    rounds: Count = 20
    """ntk-sap: rounds of score and prune (snip takes 1, synflow 100)."""
    num_samples: Count = 5
    """ntk-sap: draws of weights, inputs and probe in a round."""
    noise_batch_size: Annotated[int, Field(ge=2, lt=2**31)] = 100
    """ntk-sap: Gaussian inputs in a draw."""
    samples_per_class: Count = 10
    """snip: training images of each class."""


@configuration
class Config(RunConfig):
    """Prune whole filters and train the smaller network."""

    augment: bool = True
    """Random crops and flips, where the data set has them; --no-augment: none."""
    model: Annotated[str, name_of("model", ARCHITECTURES), listed("Network", ARCHITECTURES)] = (
        "resnet56"
    )
    width: Count | None = None
    """Channels of its first stage, or of its hidden layers (None: as published)."""
    batch_size: Count = 128
    """Images a step, in all training."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD, in all training."""
    weight_decay: NotNegative = 5e-4
    """On all parameters, in all training."""
    method: Annotated[str, _METHOD, listed("How to prune", METHODS)] = "tpp"
    compare: Annotated[
        tuple[Annotated[str, _METHOD], ...],
        listed("Methods to run in the same way, for comparison", METHODS, metavar="[NAME ...]"),
    ] = ()
    ratio: _Share = 0.5
    """Fraction of filters that goes, of each layer of --patterns. Methods that prune before
    training choose from the whole network instead, down to the FLOPs that this would leave."""
    flops_budget: _Share | None = None
    """Instead: fraction of the dense network's FLOPs that is left, by one threshold for all."""
    params_budget: _Share | None = None
    """Instead: fraction of the dense network's parameters that is left, by one threshold."""
    latency_budget: _Share | None = None
    """Instead: fraction of the dense network's time for a batch of 128 that is left, measured here
    on smaller and smaller networks (not for methods that prune before training)."""
    patterns: Annotated[tuple[Text, ...], Field(min_length=1)] = ("*",)
    """Layers that are pruned: shell patterns of their paths."""
    skip: tuple[Text, ...] = ()
    """Of those, layers that stay whole."""
    jsv_images: Count = 100
    """Training images for the Jacobian's singular values (linear networks need none)."""
    latency_repeats: Annotated[int, Field(ge=3, lt=2**31)] = 30
    """Timed passes of each network at each batch size."""
    pretrain: PretrainConfig = PretrainConfig()
    search: SearchConfig = SearchConfig()
    regularise: RegulariseConfig = RegulariseConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    runs_dir: Folder = Path("runs/tpp")
    """Where the run folders go; dense networks into its folder `dense`, shared by all runs."""
    save_minutes: Positive = 2.0
    """Minutes between two checkpoints within an epoch; one is saved at its end anyway."""

    @field_validator(*_BUDGETS[1:])
    @classmethod
    def _one_budget(cls, value: float | None, info: ValidationInfo) -> float | None:
        others = [name for name in _BUDGETS if info.data.get(name) is not None]
        if value is not None and others:
            raise ValueError(f"expected no --{others[0].replace('_', '-')} with it")
        return value

    @property
    def budget(self) -> tuple[str, float] | None:
        """Of what there is a budget, `flops`, `params` or `latency`, and the fraction left."""
        for name in _BUDGETS:
            if getattr(self, name) is not None:
                return name.removesuffix("_budget"), getattr(self, name)
        return None


def with_method(config: Config, method: str) -> Config:
    """Returns the configuration of one run: with this method, and nothing to compare with.

    Sizes and fine-tuning that the method makes no use of, and that the name of its folder leaves
    out, are at their defaults: the dense network is one run whatever the others are pruned to.
    """
    config = dataclasses.replace(config, method=method, compare=())
    use = METHODS[method]
    if use.from_scratch or not use.prunes:
        config = dataclasses.replace(config, finetune=FinetuneConfig())
    if not use.prunes:
        unused: dict[str, Any] = dict.fromkeys(_BUDGETS)
        config = dataclasses.replace(config, ratio=Config.ratio, **unused)
    return config


def size_name(config: Config) -> str:
    """Returns what is left, in short: `ratio0.8`, `flops0.3`, `params0.3` or `latency0.3`."""
    what, fraction = config.budget or ("ratio", config.ratio)
    return f"{what}{fraction:.4g}"


def network_name(config: Config) -> str:
    """Returns the data set and the network, such as `cifar10-resnet56-w8`."""
    size = f"{config.image_size}px" if config.image_size else ""
    width = f"w{config.width}" if config.width else ""
    return "-".join(part for part in (config.dataset, size, config.model, width) if part)


def run_name(config: Config) -> str:
    """Returns the name of the run folder, such as `cifar10-resnet56-tpp-ratio0.9-lr0.01-seed0`."""
    method = METHODS[config.method]
    parts = [
        network_name(config),
        config.method,
        size_name(config) if method.prunes else "",
        f"lr{config.finetune.finetune_lr:.4g}" if method.prunes and not method.from_scratch else "",
        config.label,
        f"seed{config.seed}",
    ]
    return "-".join(part for part in parts if part)
