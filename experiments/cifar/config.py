"""The configuration of the main job: what to train on what, how to prune it, how to train it.

The fields are the flags of `python -m experiments.cifar`; `experiments/cifar/presets` holds values.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments import data
from experiments.cifar.choices import CRITERIA, MODELS, parse_scope
from experiments.shell import values as values_lib
from experiments.shell.command_line import check_name
from experiments.shell.errors import UserError
from ntksap_jax import scopes


def _one_of(what: str, names: Iterable[str], *, metavar: str = "NAME") -> Any:
    """Makes the help of a field that takes a name: a line break may come between any two names."""
    return tyro.conf.arg(metavar=metavar, help=f"{what}: {', '.join(names)}.")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Pruning, before any training."""

    criterion: Annotated[
        str, _one_of("Rule that scores the weights (dense prunes nothing)", CRITERIA)
    ] = "ntk_sap"
    density: float = 0.05
    """Fraction of the prunable weights that is kept, in (0, 1]."""
    rounds: int = 20
    """Rounds of score and prune; the density falls exponentially from 1 (paper: T). Criteria whose
    source prunes in one shot take one round, whatever this says."""
    scope: str = "global"
    """What one threshold ranges over: global, layer, filter, or N:M such as 2:4; or what is pruned
    as a whole: channels, or block:RxC of inputs x outputs, such as block:4x4."""
    exclude: tuple[str, ...] = ()
    """Layers that are not pruned: regular expressions that match their path."""
    min_weights: int = 0
    """Weights that every layer keeps at least."""
    min_channels: int = 0
    """Channels that every layer keeps connected at least, going in and coming out."""
    samples_per_class: int = 10
    """Training images of each class for the criteria that need data."""
    micro_batch_size: int | None = None
    """Images at once for the criteria that need data (default: all)."""
    shuffle_mask: bool = False
    """Sanity check: shuffle the mask within each layer before training."""
    redraw_weights: bool = False
    """Sanity check: train other random weights than those that the mask was found for."""
    invert_scores: bool = False
    """Sanity check: prune the weights with the highest scores instead of the lowest."""
    reinit: bool = True
    """NTK-SAP: score freshly drawn weights (paper); --no-reinit: those that will be trained."""
    inputs: Literal["noise", "data"] = "noise"
    """NTK-SAP: score on Gaussian noise (paper) or on training images."""
    estimator: Literal["jvp", "vjp", "finite_difference"] = "jvp"
    """NTK-SAP: how the trace of the NTK is estimated (authors' code: finite_difference)."""
    sigma: float = 0.01
    """NTK-SAP, finite_difference only: standard deviation of the weight perturbation."""
    num_samples: int = 5
    """NTK-SAP: draws of weights, inputs and probe in a round."""
    noise_batch_size: int = 100
    """NTK-SAP: Gaussian inputs in a draw."""
    calibrate: Literal["one_pass", "two_pass"] = "one_pass"
    """NTK-SAP: how batch statistics are taken (authors' code: two_pass)."""
    vmap_samples: int = 1
    """NTK-SAP: draws that one vmap evaluates together (more than 1 pays nowhere that we know)."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Training of what is left: SGD with momentum, from the original weights."""

    epochs: int = 160
    """Passes over the training set."""
    batch_size: int = 128
    """Images a step."""
    learning_rate: float = 0.1
    """Highest learning rate."""
    lr_schedule: Literal["step", "cosine"] = "step"
    """step: times 0.1 at each of --drop-epochs; cosine: down to 0 over the whole training."""
    drop_epochs: tuple[int, ...] = (80, 120)
    """Epochs after which the learning rate drops (step only)."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate first rises linearly from 0."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov momentum."""
    weight_decay: float = 1e-4
    """Added to the gradient as weight_decay * weight, on all parameters, as PyTorch's SGD does."""


@dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """Several processes at one run, on one machine or on many."""

    distributed: bool = False
    """This is one of several processes at the run: those of a Slurm job, of a Cloud TPU slice or of
    a GKE job find each other, elsewhere the next three flags say where they are."""
    coordinator: str | None = None
    """With --distributed: HOST:PORT of process 0 (default: from the environment)."""
    num_processes: int | None = None
    """With --distributed: number of processes (default: from the environment)."""
    process_id: int | None = None
    """With --distributed: number of this process, from 0 (default: from the environment)."""
    start_seconds: int = 300
    """With --distributed: time until all processes must have started."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Prune a network before training, and train what is left."""

    dataset: Annotated[str, _one_of("Data set", data.NAMES)] = "cifar10"
    data_dir: Path | None = None
    """Folder of prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)."""
    model: Annotated[str, _one_of("Network", MODELS)] = "resnet20"
    image_size: int | None = None
    """Pixels a side; larger images are averaged down (default: as they are)."""
    data_workers: int = 2
    """Processes that decode the images of tiny_imagenet and imagenet; 0: in this one."""
    weights: Path | None = None
    """Start from the trained weights of this run folder (default: random weights)."""
    seed: int = 0
    """Decides the weights, the search and the order and augmentation of the images."""
    label: str = ""
    """Appended to the name of the run, to tell apart runs that differ in other options."""
    spectrum_samples: int = 0
    """Images of each class on which the spectrum of the NTK is measured before training and after
    every epoch (paper: 10; default: not measured)."""
    search: SearchConfig = field(default_factory=SearchConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    processes: ProcessConfig = field(default_factory=ProcessConfig)
    compare: Annotated[
        tuple[str, ...],
        _one_of("Criteria to run in the same way, for comparison", CRITERIA, metavar="[NAME ...]"),
    ] = ()
    runs_dir: Path = Path("runs")
    """Where the run folders go."""
    resume: bool = False
    """Go on with an interrupted run of the same configuration."""
    save_minutes: float = 10.0
    """Minutes between two checkpoints within an epoch; one is saved at its end anyway."""
    debug_nans: bool = False
    """Stop at the first operation that gives NaN, and name it (slow)."""


NOT_PART_OF_A_RUN = (
    *("data_dir", "data_workers", "compare", "runs_dir", "resume"),
    *("save_minutes", "debug_nans", "processes"),
)
"""Fields that may differ when a run is resumed: they do not change what it computes."""


def check(config: Config) -> None:
    """Raises a `UserError` that names the flag if a value makes no sense."""
    search, training = config.search, config.training
    check_name("data set", config.dataset, data.NAMES)
    check_name("model", config.model, MODELS)
    for name in (search.criterion, *config.compare):
        check_name("criterion", name, CRITERIA)

    for name, value in (to_dict(config) | to_dict(search) | to_dict(training)).items():
        if isinstance(value, int) and name != "seed":
            _require(value < 2**31, name, value, "an integer below 2^31")
    _require(0 < search.density <= 1, "density", search.density, "a fraction in (0, 1]")
    _require(0 <= config.seed < 2**32, "seed", config.seed, "an integer from 0 to 2^32 - 1")
    for name in ("rounds", "num_samples", "vmap_samples", "samples_per_class"):
        value = getattr(search, name)
        _require(value >= 1, name, value, "an integer of at least 1")
    for name in ("min_weights", "min_channels"):
        value = getattr(search, name)
        _require(value >= 0, name, value, "an integer of at least 0")
    size = search.micro_batch_size
    _require(size is None or size >= 1, "micro_batch_size", size, "an integer of at least 1")
    scope = parse_scope(search.scope)
    if isinstance(scope, scopes.NofM) and search.criterion != "dense":
        _require(
            math.isclose(search.density, scope.n / scope.m),
            "density",
            search.density,
            f"{scope.n / scope.m:g}, which --scope {search.scope} keeps",
        )
    _require(
        config.image_size is None or config.image_size >= 1,
        "image_size",
        config.image_size,
        "an integer of at least 1",
    )
    workers = config.data_workers
    _require(0 <= workers <= 1000, "data_workers", workers, "an integer from 0 to 1000")
    minutes = config.save_minutes
    _require(_is_positive(minutes), "save_minutes", minutes, "a positive number")
    _require(
        config.spectrum_samples >= 0,
        "spectrum_samples",
        config.spectrum_samples,
        "an integer of at least 0",
    )
    _require(
        re.fullmatch(r"[A-Za-z0-9_.+-]{,100}", config.label) is not None,
        "label",
        repr(config.label),
        "letters, digits and . _ + -, at most 100 (it becomes part of a folder's name)",
    )
    for name in ("epochs", "batch_size"):
        value = getattr(training, name)
        _require(value >= 1, name, value, "an integer of at least 1")
    _require(
        search.noise_batch_size >= 2, "noise_batch_size", search.noise_batch_size, "at least 2"
    )
    _require(_is_positive(search.sigma), "sigma", search.sigma, "a positive number")
    _require(
        search.num_samples % search.vmap_samples == 0,
        "vmap_samples",
        search.vmap_samples,
        f"a divisor of --num-samples ({search.num_samples})",
    )
    rate, decay = training.learning_rate, training.weight_decay
    _require(_is_positive(rate), "learning_rate", rate, "a positive number")
    _require(decay == 0 or _is_positive(decay), "weight_decay", decay, "0 or a positive number")
    _require(0 <= training.momentum < 1, "momentum", training.momentum, "a number in [0, 1)")
    _require(
        training.momentum > 0 or not training.nesterov, "momentum", 0, "positive with --nesterov"
    )
    drops = training.drop_epochs
    _require(
        list(drops) == sorted(set(drops)) and all(epoch >= 1 for epoch in drops),
        "drop_epochs",
        " ".join(map(str, drops)),
        "increasing integers of at least 1",
    )
    _require(
        0 <= training.warmup_epochs < training.epochs,
        "warmup_epochs",
        training.warmup_epochs,
        f"from 0 to less than --epochs ({training.epochs})",
    )

    _check_processes(config.processes)


def _check_processes(options: ProcessConfig) -> None:
    for name in ("coordinator", "num_processes", "process_id"):
        value = getattr(options, name)
        _require(options.distributed or value is None, name, value, "--distributed with it")
    address, count, number = options.coordinator, options.num_processes, options.process_id
    _require(
        address is None or re.fullmatch(r".+:\d+", address) is not None,
        "coordinator",
        repr(address),
        "HOST:PORT",
    )
    _require(count is None or count >= 1, "num_processes", count, "an integer of at least 1")
    _require(
        number is None or 0 <= number < (math.inf if count is None else count),
        "process_id",
        number,
        "an integer from 0 to less than --num-processes",
    )
    seconds = options.start_seconds
    _require(seconds >= 1, "start_seconds", seconds, "an integer of at least 1")


def _is_positive(number: float) -> bool:
    return math.isfinite(number) and number > 0


def _require(condition: bool, field_name: str, value: Any, expected: str) -> None:
    if not condition:
        flag = "--" + field_name.replace("_", "-")
        raise UserError(f"{flag}: expected {expected}, got {value}")


def with_criterion(config: Config, criterion: str) -> Config:
    """Returns the configuration of one run: with this criterion, and nothing to compare with.

    Of the dense network there is one: no density, and no sanity check of a mask.
    """
    search = dataclasses.replace(config.search, criterion=criterion)
    if criterion == "dense":
        search = dataclasses.replace(
            search, density=1.0, shuffle_mask=False, redraw_weights=False, invert_scores=False
        )
    return dataclasses.replace(config, search=search, compare=())


def variants(search: SearchConfig) -> list[str]:
    """Returns the sanity checks that a run makes, in one word each."""
    words = {
        "shuffled": search.shuffle_mask,
        "redrawn": search.redraw_weights,
        "inverted": search.invert_scores,
    }
    return [word for word, asked in words.items() if asked]


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


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a configuration as a nested dictionary of what JSON can hold."""
    return {
        field.name: _to_plain(getattr(config, field.name)) for field in dataclasses.fields(config)
    }


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def from_dict(values: Any, where: str = "the configuration") -> Config:
    """Returns the configuration that `to_dict` turned into `values`; what is missing has defaults.

    Args:
        values: from JSON, whoever wrote it.
        where: names them in messages.

    Raises:
        UserError: an unknown field, or a value of the wrong type; the message names the field.
    """
    return values_lib.convert(values, Config, where)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Returns one phrase, `epochs: 2 -> 4`, for each field in which two configurations differ.

    Args:
        old: a configuration, from `to_dict`.
        new: another one. Fields that do not change what a run computes are not compared.
    """
    found = []
    old, new = computed(old), computed(new)
    for name in dict.fromkeys((*old, *new)):
        before, after = old.get(name, "(none)"), new.get(name, "(none)")
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after)
        elif before != after:
            found.append(f"{name}: {before} -> {after}")
    return found


def computed(config: dict[str, Any]) -> dict[str, Any]:
    """Leaves out of a configuration, from `to_dict`, what does not change what a run computes."""
    return {name: config[name] for name in config if name not in NOT_PART_OF_A_RUN}
