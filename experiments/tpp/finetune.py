"""The last stage: the small network is trained, without penalty."""

from __future__ import annotations

from pathlib import Path

import flax.linen as nn

from experiments.tpp import dense, schedules, stage
from experiments.tpp.config import Config, finetune_drop_epochs, method_of
from experiments.tpp.job import Job, make_keys


def make_stage(
    config: Config, job: Job, model: nn.Module, *, folder: Path, run: str
) -> stage.Stage:
    """Makes the stage: fine-tuning, or training from scratch as the dense network had it.

    Args:
        config: of the run.
        job: the data.
        model: the small network.
        folder: of the run.
        run: identifies what is computed.
    """
    if method_of(config).from_scratch:
        return dense.from_scratch(
            config, job, model, name="training", folder=folder, run=run, seed_of="finetune"
        )
    options = config.finetune
    return dense.plain_training(
        config,
        job,
        model,
        name="fine-tuning",
        folder=folder,
        run=run,
        key=make_keys(config.seed).finetune,
        schedule=schedules.drops(
            options.finetune_lr, finetune_drop_epochs(config), steps_per_epoch=job.steps_per_epoch
        ),
        num_epochs=options.finetune_epochs,
    )
