"""The resolved plan, in words: what `python -m experiments.cifar` prints before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.cifar import config as config_lib
from experiments.cifar.config import Config, SearchConfig, TrainingConfig
from experiments.cifar.job import Job
from experiments.shell.console import plural
from experiments.training import summary as common
from ntksap_jax import schedules

_CHECKS = {
    "shuffled": "the mask is shuffled within each layer",
    "redrawn": "the weights are drawn anew after the search",
    "inverted": "the highest scores are pruned",
}


def describe(config: Config, job: Job, folders: Sequence[Path]) -> list[tuple[str, str]]:
    """Returns the plan as (name, value) rows."""
    training = config.training
    steps_per_epoch = job.images.steps_per_epoch
    rows = {
        "network": f"{config.model}: {job.num_parameters:,} parameters, {job.num_prunable:,} of "
        f"them prunable in {len(job.kernel_flops)} layers; "
        f"{sum(job.kernel_flops.values()) / 1e6:.1f} MFLOPs an image",
        "weights": _weights(config),
        "criterion": _criterion(config.search),
        "compared with": ", ".join(
            name for name in config.compare if name != config.search.criterion
        ),
        "sanity checks": ", ".join(_CHECKS[word] for word in config_lib.variants(config.search)),
        "search": _rounds(config, job.num_prunable),
        "training": f"{plural(training.epochs, 'epoch')} of "
        f"{plural(steps_per_epoch, 'step')} of {plural(training.batch_size, 'image')}",
        "optimiser": f"SGD, {'Nesterov ' if training.nesterov else ''}momentum "
        f"{training.momentum:g}, weight decay {training.weight_decay:g}",
        "learning rate": _learning_rate(training),
    }
    return common.plan(job.images, rows, config.seed, folders)


def _weights(config: Config) -> str:
    trained = f"those that {config.weights} trained" if config.weights else ""
    scaled = "scaled to the inputs that the mask leaves" if config.search.rescale else ""
    return ", ".join(filter(None, (trained, scaled)))


def _criterion(options: SearchConfig) -> str:
    if options.criterion == "dense":
        return "dense: nothing is pruned"
    even = ", balanced between layers" if options.balanced else ""
    data = f"{options.samples_per_class} training images a class"
    if options.criterion != "ntk_sap":
        return f"{options.criterion}{f', on {data}' if options.needs_data else ''}{even}"
    spread = f" (sigma {options.sigma:g})" if options.estimator == "finite_difference" else ""
    weights = "fresh" if options.reinit else "the given"
    if options.reinit and options.fresh_share < 1:
        weights = f"{options.fresh_share:.0%} fresh"
    inputs = data if options.needs_data else f"{options.noise_batch_size} Gaussian inputs"
    return (
        f"ntk_sap, estimator {options.estimator}{spread}; {options.num_samples} samples a round of "
        f"{inputs} and {weights} weights; batch statistics in "
        f"{options.calibrate.replace('_', ' ')}{even}"
    )


def _rounds(config: Config, prunable: int) -> str:
    options = config.search
    if {options.criterion, *config.compare} == {"dense"}:
        return ""
    densities = schedules.exponential(options.density, rounds=options.num_rounds)
    counts = [f"{round(density * prunable):,}" for density in (1.0, *densities)]
    if len(counts) > 6:
        counts = [*counts[:4], "...", counts[-1]]
    parts = [
        f"{plural(options.num_rounds, 'round')} to density {options.density:.4g}",
        f"scope {options.scope}" if options.scope != "global" else "",
        f"at least {plural(options.min_weights, 'weight')} a layer" if options.min_weights else "",
        f"at least {plural(options.min_channels, 'channel')} a layer"
        if options.min_channels
        else "",
        f"weights kept: {' > '.join(counts)}",
    ]
    return "; ".join(part for part in parts if part)


def _learning_rate(options: TrainingConfig) -> str:
    rate = f"{options.learning_rate:g}"
    if options.warmup_epochs:
        rate = f"up to {rate} over {plural(options.warmup_epochs, 'epoch')}"
    if options.lr_schedule == "cosine":
        return f"{rate}, then along a cosine down to 0"
    drops = [str(epoch) for epoch in options.drop_epochs if epoch < options.epochs]
    return f"{rate}, times 0.1 after epoch {' and '.join(drops)}" if drops else f"{rate}, constant"
