"""Training without penalty: of the dense network, and of the small one that is left of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import optax

from experiments.shell import console as screen
from experiments.storage.run_folder import Row
from experiments.tpp import measure
from experiments.tpp.config import Config, finetune_drop_epochs, method_of
from experiments.tpp.job import Job, make_keys
from experiments.training import steps
from experiments.training.loop import Stage
from experiments.training.steps import TrainState
from ntksap_jax.structured import tpp_presets


def sgd(config: Config, learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Makes the optimiser of a stage: SGD as PyTorch has it."""
    return tpp_presets.sgd(
        learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )


def finetuning(
    config: Config, job: Job, model: nn.Module, variables: Any, *, folder: Path, run: str
) -> tuple[Stage, TrainState]:
    """Makes the last stage: fine-tuning, or training from scratch as the dense network had it.

    Args:
        config: of the run.
        job: the data.
        model: the small network.
        variables: at the beginning.
        folder: of the run.
        run: identifies what is computed.
    """
    key, options = make_keys(config.seed).finetune, config.finetune
    if method_of(config).from_scratch:
        return from_scratch(
            config, job, model, variables, name="Training", folder=folder, run=run, key=key
        )
    return _plain(
        *(config, job, model, variables),
        name="Fine-tuning",
        folder=folder,
        run=run,
        key=key,
        rate=options.finetune_lr,
        drop_epochs=finetune_drop_epochs(config),
        num_epochs=options.finetune_epochs,
    )


def from_scratch(
    config: Config,
    job: Job,
    model: nn.Module,
    variables: Any,
    *,
    name: str,
    folder: Path,
    run: str,
    key: jax.Array,
) -> tuple[Stage, TrainState]:
    """Makes the stage that trains a network, dense or small, from random weights.

    Args:
        config: of the run.
        job: the data.
        model: the network.
        variables: at the beginning.
        name: of the stage, for the screen.
        folder: where its checkpoints and its table go.
        run: identifies what is computed.
        key: decides order and augmentation of the images.
    """
    options = config.pretrain
    return _plain(
        *(config, job, model, variables),
        name=name,
        folder=folder,
        run=run,
        key=key,
        rate=options.pretrain_lr,
        drop_epochs=options.pretrain_drop_epochs,
        num_epochs=options.pretrain_epochs,
    )


def _plain(
    config: Config,
    job: Job,
    model: nn.Module,
    variables: Any,
    *,
    name: str,
    folder: Path,
    run: str,
    key: jax.Array,
    rate: float,
    drop_epochs: Sequence[int],
    num_epochs: int,
) -> tuple[Stage, TrainState]:
    """Makes a stage with a row of metrics.csv for each epoch, and the state it begins with."""
    per_epoch = job.images.steps_per_epoch
    schedule = steps.drops(rate, drop_epochs, steps_per_epoch=per_epoch)
    optimizer = sgd(config, schedule)

    def describe(row: Row) -> str:
        jsv = f"  JSV {row['jsv_mean']:.4f}" if "jsv_mean" in row else ""
        return (
            f"{name.lower()} {row['epoch']:>3}/{num_epochs}  learning rate "
            f"{row['learning_rate']:g}  loss {row['train_loss']:.3f}  test loss "
            f"{row['test_loss']:.3f}  test accuracy {row['test_accuracy']:.2%}{jsv}  "
            f"{screen.duration(row['seconds'])}"
        )

    order_key, augmentation_key = jax.random.split(key)
    stage = Stage(
        name=name,
        folder=folder,
        table="metrics.csv",
        run=run,
        order_key=order_key,
        augmentation_key=augmentation_key,
        train_step=steps.make_train_step(model, optimizer, job.images.augment),
        learning_rate=schedule,
        num_steps=num_epochs * per_epoch,
        row_steps=per_epoch,
        measure=measure.make_columns(config, job, model),
        describe=describe,
        advice="a lower learning rate",
    )
    return stage, steps.init_state(variables, optimizer)
