"""The resolved plan, in words: what `python -m experiments.cifar` prints before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from experiments import run_folder
from experiments.config import Config, SearchConfig, TrainingConfig
from experiments.data import Dataset
from experiments.job import Job
from ntksap_jax import schedules


def describe(config: Config, job: Job, folders: Sequence[Path]) -> list[tuple[str, str]]:
    """Returns the plan as (name, value) rows.

    Args:
        config: what was asked for.
        job: what was made of it.
        folders: the run folders.
    """
    training, dataset, size = config.training, job.dataset, job.size
    shape = "x".join(map(str, dataset.image_shape))
    note = f" ({dataset.note})" if dataset.note else ""
    rows = {
        "data set": f"{dataset.name}: {len(dataset.train_labels):,} training and "
        f"{len(dataset.test_labels):,} test images of {shape}, {dataset.num_classes} classes{note}",
        "augmentation": _augmentation(dataset),
        "network": f"{config.model}: {size.parameters:,} parameters, {size.prunable:,} of them "
        f"prunable in {size.layers} layers; {size.flops / 1e6:.1f} MFLOPs an image",
        "criterion": _criterion(config.search),
        "compared with": ", ".join(
            name for name in config.compare if name != config.search.criterion
        ),
        "search": _rounds(config, size.prunable),
        "training": f"{_plural(training.epochs, 'epoch')} of "
        f"{_plural(job.steps_per_epoch, 'step')} of {_plural(training.batch_size, 'image')}",
        "optimiser": f"SGD, {'Nesterov ' if training.nesterov else ''}momentum "
        f"{training.momentum:g}, weight decay {training.weight_decay:g}",
        "learning rate": _learning_rate(training),
        "seed": str(config.seed),
        "devices": f"{job.mesh.size} x {jax.devices()[0].device_kind}, jax {jax.__version__}",
        "writes to": "\n".join(f"{folder}{run_folder.describe(folder)}" for folder in folders),
    }
    return [(name, value) for name, value in rows.items() if value]


def _augmentation(dataset: Dataset) -> str:
    parts = [f"random crop with padding {dataset.crop_padding}"] if dataset.crop_padding else []
    parts += ["random flip"] if dataset.flip else []
    return ", ".join(parts) or "none"


def _criterion(options: SearchConfig) -> str:
    if options.criterion == "dense":
        return "dense: nothing is pruned"
    if options.criterion != "ntk_sap":
        return options.criterion
    spread = f" (sigma {options.sigma:g})" if options.estimator == "finite_difference" else ""
    return (
        f"ntk_sap, estimator {options.estimator}{spread}; {options.num_samples} samples a round of "
        f"{options.noise_batch_size} Gaussian inputs and fresh weights; batch statistics in "
        f"{options.calibrate.replace('_', ' ')}"
    )


def _rounds(config: Config, prunable: int) -> str:
    options = config.search
    if {options.criterion, *config.compare} == {"dense"}:
        return ""
    densities = schedules.exponential(options.density, rounds=options.rounds)
    counts = [f"{round(density * prunable):,}" for density in (1.0, *densities)]
    if len(counts) > 6:
        counts = [*counts[:4], "...", counts[-1]]
    rounds = _plural(options.rounds, "round")
    return f"{rounds} to density {options.density:.4g}; weights kept: {' > '.join(counts)}"


def _learning_rate(options: TrainingConfig) -> str:
    rate = f"{options.learning_rate:g}"
    if options.warmup_epochs:
        rate = f"up to {rate} over {_plural(options.warmup_epochs, 'epoch')}"
    if options.lr_schedule == "cosine":
        return f"{rate}, then along a cosine down to 0"
    drops = [str(epoch) for epoch in options.drop_epochs if epoch < options.epochs]
    return f"{rate}, times 0.1 after epoch {' and '.join(drops)}" if drops else f"{rate}, constant"


def _plural(number: float, noun: str) -> str:
    return f"{number:g} {noun}" if number == 1 else f"{number:g} {noun}s"
