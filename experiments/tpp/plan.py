"""The resolved plan, in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.storage import run_folder
from experiments.tpp import networks, selection, shared
from experiments.tpp.config import Config, Recipe
from experiments.tpp.job import Job
from experiments.tpp.methods import METHODS
from experiments.training import summary as common
from ntksap_jax import structured
from ntksap_jax.structured import tpp


def describe(config: Config, job: Job, folders: Sequence[Path]) -> list[tuple[str, str]]:
    """Returns the plan of the runs in these folders as (name, value) rows."""
    cost = structured.cost(job.channels)
    published = networks.ARCHITECTURES[config.model].width
    width = f", width {config.width} (published: {published})" if config.width else ""
    methods = list(dict.fromkeys((config.method, *config.compare)))
    dense = shared.dense_folder(config, job)
    there = "trained already, in" if run_folder.is_complete(dense) else "goes to"
    rows = {
        "network": f"{config.model}{width}: {cost.params:,} parameters, {cost.flops:,} FLOPs",
        "methods": "\n".join(f"{name}: {METHODS[name].about}" for name in methods),
        "what goes": _size(config, job),
        "pretraining": _training(config.pretrain.recipe),
        "regularisation": _regularisation(config, methods),
        "fine-tuning": _training(config.finetune.recipe),
        "all training": f"{job.images.steps_per_epoch} steps an epoch of {config.batch_size} "
        f"images; momentum {config.momentum:g}, weight decay {config.weight_decay:g}",
        "dense network": f"{there} {dense}",
    }
    return common.plan(job.images, rows, config.seed, folders, augmented=config.augment)


def _size(config: Config, job: Job) -> str:
    number = sum(ratio > 0 for ratio in selection.layer_ratios(config, job).values())
    of = f"{number} layers ({', '.join(config.patterns)}"
    of += f"; not {', '.join(config.skip)})" if config.skip else ")"
    if config.budget is not None:
        what, budget = config.budget
        words = {"flops": "FLOPs", "params": "parameters", "latency": "time"}
        return f"filters of {of}, until {budget:g} of the {words[what]} are left"
    left = selection.cost_left(config, job).flops / structured.cost(job.channels).flops
    return f"{config.ratio:g} of the filters of {of}; {left:.1%} of the FLOPs are left"


def _training(recipe: Recipe) -> str:
    within = [str(epoch) for epoch in recipe.drop_epochs if epoch < recipe.epochs]
    after = f", times 0.1 after epoch {' and '.join(within)}" if within else ""
    return f"{recipe.epochs} epochs, learning rate {recipe.learning_rate:g}{after}"


def _regularisation(config: Config, methods: Sequence[str]) -> str:
    options, lines = config.regularise, []
    kinds = {METHODS[name].regulariser for name in methods}
    if kinds & {"tpp", "greg1"}:
        settings = options.settings
        lines.append(
            f"{tpp.num_steps(settings):,} steps, learning rate {options.reg_lr:g}; strength grows "
            f"by {settings.increment:g} every {settings.update_interval} steps to 1, then "
            f"{settings.stabilise_steps:,} steps"
        )
    if kinds & {"kernorth", "orthconv"}:
        stride = f"; stride {options.orth_stride}" if "orthconv" in kinds else ""
        lines.append(f"{options.orth_steps:,} steps of {options.orth_weight:g} x penalty{stride}")
    return "\n".join(lines)
