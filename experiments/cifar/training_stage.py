"""The second stage of a run: train what is left."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from experiments.cifar import spectrum
from experiments.cifar.config import Config
from experiments.cifar.job import Job, make_keys
from experiments.processes import distributed
from experiments.shell import console as screen
from experiments.storage import run_folder
from experiments.storage.run_folder import Row
from experiments.training import inputs, steps
from experiments.training.loop import Stage
from experiments.training.steps import TrainState
from ntksap_jax import masks
from ntksap_jax.types import Mask


def make(
    config: Config, job: Job, variables: Any, mask: Mask, folder: Path
) -> tuple[Stage, TrainState]:
    """Makes the stage, with a row of metrics.csv for each epoch, and the state that it begins with.

    Both start from the original `variables`.
    """
    num_epochs, per_epoch = config.training.epochs, job.images.steps_per_epoch
    keys, digest = make_keys(config.seed), masks.digest(mask)

    def describe(row: Row) -> str:
        return (
            f"epoch {row['epoch']:>3}/{num_epochs}  learning rate {row['learning_rate']:.4f}  "
            f"loss {row['train_loss']:.3f}  test loss {row['test_loss']:.3f}  "
            f"test accuracy {row['test_accuracy']:.2%}  {screen.duration(row['seconds'])}"
        )

    stage = Stage(
        name="Training",
        folder=folder,
        table="metrics.csv",
        run=distributed.from_leader(lambda: run_folder.identity(folder, digest)),
        keys=(keys.order, keys.augmentation),
        train_step=job.train_step,
        learning_rate=steps.learning_rate(config.training, per_epoch),
        num_steps=num_epochs * per_epoch,
        row_steps=per_epoch,
        measure=functools.partial(inputs.test_columns, job.images, eval_step=job.eval_step),
        describe=describe,
        advice="a lower --learning-rate, a longer --warmup-epochs",
        follow=functools.partial(spectrum.follow, config, job, variables["params"], mask, folder),
    )
    return stage, steps.init_state(variables, job.optimizer, mask)
