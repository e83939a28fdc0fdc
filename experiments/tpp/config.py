"""The configuration of `experiments.tpp`: its fields are the flags, `presets.py` holds values."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.cifar.config import to_dict
from experiments.data import catalogue
from experiments.shell.command_line import check_name
from experiments.shell.errors import UserError
from experiments.tpp.methods import METHODS, Method
from experiments.tpp.networks import ARCHITECTURES
from ntksap_jax.structured import tpp

DATASETS = tuple(name for name in catalogue.NAMES if name not in catalogue.STREAMED)
"""Those that fit into memory."""


def _one_of(what: str, names: Iterable[str], *, metavar: str = "NAME") -> Any:
    return tyro.conf.arg(metavar=metavar, help=f"{what}: {', '.join(names)}.")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Training of the dense network; of one that is pruned before training too."""

    pretrain_epochs: int = 200
    """Passes over the training set."""
    pretrain_lr: float = 0.1
    """Learning rate at first."""
    pretrain_drop_epochs: tuple[int, ...] = (100, 150)
    """Epochs after which it is multiplied by 0.1."""


@dataclass(frozen=True, kw_only=True)
class RegulariseConfig:
    """Training with a penalty, before filters are removed; see `ntksap_jax.structured.tpp`."""

    reg_lr: float = 1e-3
    """Learning rate, constant."""
    gram_weight: float = 1000.0
    """TPP: factor of the Gram penalty."""
    update_interval: int = 10
    """TPP, greg1: steps between two increments of the strength."""
    increment: float = 1e-4
    """TPP, greg1: how much the strength grows at each, from 0 to 1."""
    stabilise_steps: int = 10_000
    """TPP, greg1: further steps at strength 1."""
    zero_out_interval: int = 100
    """TPP: steps from one layer's filters being set to zero to the next layer's (0: never)."""
    orth_steps: int = 50_000
    """kernorth-l1, orthconv-l1: steps with the penalty."""
    orth_weight: float = 0.1
    """kernorth-l1, orthconv-l1: factor of the penalty."""
    orth_stride: int = 2
    """orthconv-l1: stride of the convolution of filters with filters (published: 2; 1 has the
    identity at shift 0)."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Training of the small network, without penalty."""

    finetune_epochs: int = 120
    """Passes over the training set."""
    finetune_lr: float = 1e-2
    """Learning rate at first."""
    finetune_drop_epochs: tuple[int, ...] = (60, 90)
    """Epochs after which it is multiplied by 0.1."""
    small_lr_drop_epochs: tuple[int, ...] = (80,)
    """The same for a --finetune-lr of 0.001 or less."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Pruning before training (ntk-sap, snip, synflow)."""

    rounds: int = 20
    """ntk-sap: rounds of score and prune (snip takes 1, synflow 100)."""
    num_samples: int = 5
    """ntk-sap: draws of weights, inputs and probe in a round."""
    noise_batch_size: int = 100
    """ntk-sap: Gaussian inputs in a draw."""
    samples_per_class: int = 10
    """snip: training images of each class."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Prune whole filters and train the smaller network."""

    dataset: Annotated[str, _one_of("Data set", DATASETS)] = "cifar10"
    data_dir: Path | None = None
    """Folder of prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)."""
    image_size: int | None = None
    """Pixels a side; larger images are averaged down, smaller ones interpolated (default: as they
    are)."""
    augment: bool = True
    """Random crops and flips, where the data set has them; --no-augment for none."""
    model: Annotated[str, _one_of("Network", ARCHITECTURES)] = "resnet56"
    width: int | None = None
    """Channels of its first stage, or of its hidden layers (default: as published)."""
    batch_size: int = 128
    """Images a step, in all training."""
    momentum: float = 0.9
    """Momentum of SGD, in all training."""
    weight_decay: float = 5e-4
    """On all parameters, in all training."""
    seed: int = 0
    """Decides the weights, the search and the order and augmentation of the images."""
    method: Annotated[str, _one_of("How to prune", METHODS)] = "tpp"
    compare: Annotated[
        tuple[str, ...],
        _one_of("Methods to run in the same way, for comparison", METHODS, metavar="[NAME ...]"),
    ] = ()
    ratio: float = 0.5
    """Fraction of filters that goes, of each layer of --patterns. Methods that prune before
    training choose from the whole network instead, down to the FLOPs that this would leave."""
    flops_budget: float | None = None
    """Instead: fraction of the dense network's FLOPs that is left, by one threshold for all."""
    params_budget: float | None = None
    """Instead: fraction of the dense network's parameters that is left, by one threshold."""
    latency_budget: float | None = None
    """Instead: fraction of the dense network's time for a batch of 128 that is left, measured here
    on smaller and smaller networks (not for methods that prune before training)."""
    patterns: tuple[str, ...] = ("*",)
    """Layers that are pruned: shell patterns of their paths."""
    skip: tuple[str, ...] = ()
    """Of those, layers that stay whole."""
    jsv_images: int = 100
    """Training images for the Jacobian's singular values (linear networks need none)."""
    latency_repeats: int = 30
    """Timed passes of each network at each batch size."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    regularise: RegulariseConfig = field(default_factory=RegulariseConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    label: str = ""
    """Appended to the name of the run, to tell apart runs that differ in other options."""
    runs_dir: Path = Path("runs/tpp")
    """Where the run folders go; dense networks into its folder `dense`, shared by all runs."""
    resume: bool = False
    """Go on with an interrupted run of the same configuration."""
    save_minutes: float = 2.0
    """Minutes between two checkpoints; one is saved at the end of a stage anyway."""


def check(config: Config) -> None:
    """Raises a `UserError` that names the flag if a value makes no sense."""
    check_name("data set", config.dataset, DATASETS)
    check_name("model", config.model, ARCHITECTURES)
    for name in (config.method, *config.compare):
        check_name("method", name, METHODS)
    values = {
        **to_dict(config),
        **to_dict(config.pretrain),
        **to_dict(config.search),
        **to_dict(config.regularise),
        **to_dict(config.finetune),
    }
    for name, lowest in _LOWEST.items():
        value = values[name]
        _require(value is None or value >= lowest, name, value, f"an integer of at least {lowest}")
    for name in ("pretrain_lr", "reg_lr", "finetune_lr", "increment", "save_minutes"):
        value = values[name]
        _require(math.isfinite(value) and value > 0, name, value, "a positive number")
    for name in ("weight_decay", "gram_weight", "orth_weight"):
        value = values[name]
        _require(math.isfinite(value) and value >= 0, name, value, "a number of at least 0")
    _require(config.seed < 2**32, "seed", config.seed, "an integer from 0 to 2^32 - 1")
    _require(0 <= config.momentum < 1, "momentum", config.momentum, "a number in [0, 1)")
    _require(0 < config.ratio < 1, "ratio", config.ratio, "a fraction in (0, 1)")
    for name in _BUDGETS:
        value = values[name]
        _require(value is None or 0 < value < 1, name, value, "a fraction in (0, 1)")
    if sum(values[name] is not None for name in _BUDGETS) > 1:
        raise UserError("--flops-budget, --params-budget, --latency-budget: give one of them")
    for name in ("pretrain_drop_epochs", "finetune_drop_epochs", "small_lr_drop_epochs"):
        epochs = values[name]
        fine = epochs == sorted(set(epochs)) and all(epoch >= 1 for epoch in epochs)
        _require(fine, name, " ".join(map(str, epochs)), "increasing integers of at least 1")
    _require(bool(config.patterns), "patterns", "none", "at least one pattern of a layer's path")
    _require(
        re.fullmatch(r"[A-Za-z0-9_.+-]*", config.label) is not None,
        "label",
        repr(config.label),
        "letters, digits and . _ + - (it becomes part of a folder's name)",
    )


_BUDGETS = ("flops_budget", "params_budget", "latency_budget")
_LOWEST = {
    **dict.fromkeys(("image_size", "width", "batch_size", "pretrain_epochs"), 1),
    **dict.fromkeys(("finetune_epochs", "update_interval", "orth_steps", "orth_stride"), 1),
    **dict.fromkeys(("rounds", "num_samples", "samples_per_class", "jsv_images"), 1),
    **dict.fromkeys(("seed", "stabilise_steps", "zero_out_interval"), 0),
    **{"noise_batch_size": 2, "latency_repeats": 3},
}


def _require(condition: bool, field_name: str, value: Any, expected: str) -> None:
    if not condition:
        flag = "--" + field_name.replace("_", "-")
        raise UserError(f"{flag}: expected {expected}, got {value}")


def method_of(config: Config) -> Method:
    """Returns what the configuration's method does."""
    return METHODS[config.method]


def with_method(config: Config, method: str) -> Config:
    """Returns the configuration of one run: with this method, and nothing to compare with.

    Sizes and fine-tuning that the method makes no use of, and that the name of its folder leaves
    out, are at their defaults: the dense network is one run whatever the others are pruned to.
    """
    config = dataclasses.replace(config, method=method, compare=())
    use = method_of(config)
    if use.from_scratch or not use.prunes:
        config = dataclasses.replace(config, finetune=FinetuneConfig())
    if not use.prunes:
        unused: dict[str, Any] = dict.fromkeys(_BUDGETS)
        config = dataclasses.replace(config, ratio=Config.ratio, **unused)
    return config


def tpp_settings(config: Config) -> tpp.Settings:
    """Returns what TPP adds to training."""
    options = config.regularise
    return tpp.Settings(
        gram_weight=options.gram_weight,
        update_interval=options.update_interval,
        increment=options.increment,
        stabilise_steps=options.stabilise_steps,
        zero_out_interval=options.zero_out_interval or None,
    )


def finetune_drop_epochs(config: Config) -> tuple[int, ...]:
    """Returns the epochs after which the learning rate of fine-tuning drops."""
    options = config.finetune
    small = options.finetune_lr <= 1e-3
    return options.small_lr_drop_epochs if small else options.finetune_drop_epochs


def size_name(config: Config) -> str:
    """Returns what is left, in short: `ratio0.8`, `flops0.3`, `params0.3` or `latency0.3`."""
    for name in _BUDGETS:
        budget = getattr(config, name)
        if budget is not None:
            return f"{name.removesuffix('_budget')}{budget:.4g}"
    return f"ratio{config.ratio:.4g}"


def network_name(config: Config) -> str:
    """Returns the data set and the network, such as `cifar10-resnet56-w8`."""
    size = f"{config.image_size}px" if config.image_size else ""
    width = f"w{config.width}" if config.width else ""
    return "-".join(part for part in (config.dataset, size, config.model, width) if part)


def run_name(config: Config) -> str:
    """Returns the name of the run folder, such as `cifar10-resnet56-tpp-ratio0.9-lr0.01-seed0`."""
    method = method_of(config)
    parts = [
        network_name(config),
        config.method,
        size_name(config) if method.prunes else "",
        f"lr{config.finetune.finetune_lr:.4g}" if method.prunes and not method.from_scratch else "",
        config.label,
        f"seed{config.seed}",
    ]
    return "-".join(part for part in parts if part)
