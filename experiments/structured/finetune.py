"""The last stage: the small network is trained, without penalty."""

from __future__ import annotations

from pathlib import Path

import flax.linen as nn

from experiments.structured import dense, measure, schedules, stage
from experiments.structured.config import Config, finetune_drop_epochs, method_of
from experiments.structured.job import Job, make_keys


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
    schedule = schedules.drops(
        options.finetune_lr, finetune_drop_epochs(config), steps_per_epoch=job.steps_per_epoch
    )
    return stage.Stage(
        name="fine-tuning",
        checkpoints=folder / "checkpoints",
        table=folder / "metrics.csv",
        run=run,
        key=make_keys(config.seed).finetune,
        model=model,
        optimizer=schedules.sgd(config, schedule),
        learning_rate=schedule,
        num_steps=options.finetune_epochs * job.steps_per_epoch,
        row_steps=job.steps_per_epoch,
        measure=measure.make_columns(config, job, model),
        describe=lambda row: dense.describe_epoch("fine-tuning", row, options.finetune_epochs),
    )
