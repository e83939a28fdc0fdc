"""What the programs that train have in common: fields of their configurations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field, ValidationInfo, field_validator

from experiments.data.catalogue import NAMES
from experiments.processes.config import ProcessConfig
from experiments.shell.configuration import (
    Count,
    Epochs,
    Folder,
    Label,
    NotNegative,
    Positive,
    Seed,
    configuration,
    name_of,
)


def listed(what: str, names: Iterable[str], *, metavar: str = "NAME") -> Any:
    """Makes the help of a field that takes a name: a line break may come between any two names."""
    return tyro.conf.arg(metavar=metavar, help=f"{what}: {', '.join(names)}.")


@configuration
class RunConfig:
    """Data, seed, and where and how a run is carried out."""

    dataset: Annotated[str, name_of("data set", NAMES), listed("Data set", NAMES)] = "cifar10"
    data_dir: Folder | None = None
    """Folder of prepared data sets (None: TFDS_DATA_DIR, else ~/tensorflow_datasets)."""
    image_size: Count | None = None
    """Pixels a side; larger images are averaged down (None: as they are)."""
    data_workers: Annotated[int, Field(ge=0, le=1000)] = 2
    """Processes that decode the images of tiny_imagenet and imagenet; 0: in this one."""
    seed: Seed = 0
    """Decides the weights, the search and the order and augmentation of the images."""
    label: Label = ""
    """Appended to the name of the run, to tell apart runs that differ in other options."""
    runs_dir: Folder = Path("runs")
    """Where the run folders go."""
    resume: bool = False
    """Go on with an interrupted run of the same configuration."""
    save_minutes: Positive = 10.0
    """Minutes between two checkpoints within an epoch; one is saved at its end anyway."""
    debug_nans: bool = False
    """Stop at the first operation that gives NaN, and name it (slow)."""
    tensorboard: bool = False
    """Write the tables as TensorBoard events too, into the folder tensorboard of each run."""
    processes: ProcessConfig = ProcessConfig()


@configuration
class TrainingConfig:
    """Training of what is left: SGD with momentum, from the original weights."""

    epochs: Count = 160
    """Passes over the training set."""
    batch_size: Count = 128
    """Images a step."""
    learning_rate: Positive = 0.1
    """Highest learning rate."""
    lr_schedule: Literal["step", "cosine"] = "step"
    """step: times 0.1 at each of --drop-epochs; cosine: down to 0 over the whole training."""
    drop_epochs: Epochs = (80, 120)
    """Epochs after which the learning rate drops (step only)."""
    warmup_epochs: NotNegative = 0.0
    """Epochs over which the learning rate first rises linearly from 0."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov momentum."""
    weight_decay: NotNegative = 1e-4
    """Added to the gradient as weight_decay * weight, on all parameters, as PyTorch's SGD does."""

    @field_validator("warmup_epochs")
    @classmethod
    def _within_training(cls, value: float, info: ValidationInfo) -> float:
        if value >= info.data.get("epochs", float("inf")):
            raise ValueError(f"expected less than --epochs ({info.data['epochs']})")
        return value

    @field_validator("nesterov")
    @classmethod
    def _of_some_momentum(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not info.data.get("momentum"):
            raise ValueError("expected a positive --momentum with it")
        return value
