"""The dense network: pretrained once, and kept for all runs that start from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from rich.console import Console

from experiments.shell import console as screen
from experiments.shell.configuration import to_dict
from experiments.storage import run_folder
from experiments.storage.run_folder import Row
from experiments.tpp import job as job_lib
from experiments.tpp import measure, schedules, shared, stage
from experiments.tpp.config import Config
from experiments.tpp.job import Job

WHAT_COUNTS = (
    *("dataset", "image_size", "augment", "model", "width", "seed"),
    *("batch_size", "momentum", "weight_decay", "pretrain"),
)
"""Fields of the configuration that the dense network depends on."""


class Dense(NamedTuple):
    """The trained dense network, and the rows of its training."""

    variables: Any
    rows: list[Row]


def identity(config: Config, job: Job) -> dict[str, Any]:
    """Returns all that the dense network of a configuration depends on."""
    values = to_dict(config)
    return {**{name: values[name] for name in WHAT_COUNTS}, "data": job.dataset.source}


def folder_of(config: Config, job: Job) -> Path:
    """Returns the folder of the dense network that a configuration asks for."""
    return shared.path(config, "dense", identity(config, job))


def is_there(config: Config, job: Job) -> bool:
    """Says whether the dense network was trained to the end."""
    return run_folder.is_complete(folder_of(config, job))


def pretrained(
    config: Config, job: Job, console: Console, *, stop_requested: Callable[[], bool]
) -> Dense:
    """Returns the dense network: trained by an earlier run, trained on, or trained now.

    Raises:
        UserError: another program trains it at the moment; its checkpoints are damaged.
        RunFailed, Preempted: as `stage.carry_out` does.
    """
    with shared.folder(config, "dense", identity(config, job)) as folder:
        variables = job_lib.init_variables(
            config, job, job.model, job_lib.make_keys(config.seed).init
        )
        variables, rows = stage.carry_out(
            from_scratch(
                config,
                job,
                job.model,
                name="pretraining",
                folder=folder,
                run=run_folder.identity(folder),
                seed_of="pretrain",
            ),
            variables,
            config,
            job,
            console,
            stop_requested=stop_requested,
        )
        run_folder.write_json(folder / "summary.json", rows[-1])
    return Dense(variables, rows)


def accuracy_if_there(config: Config, job: Job) -> float | None:
    """Returns the dense network's test accuracy, if it was trained already."""
    if not is_there(config, job):
        return None
    return run_folder.read_summary(folder_of(config, job))["test_accuracy"]


def from_scratch(
    config: Config, job: Job, model: Any, *, name: str, folder: Path, run: str, seed_of: str
) -> stage.Stage:
    """Makes the stage that trains a network, dense or small, from random weights.

    Args:
        config: of the run.
        job: the data.
        model: the network.
        name: of the stage, for the screen.
        folder: where its checkpoints and its table go.
        run: identifies what is computed.
        seed_of: which of `job.Keys` decides the order of the images.
    """
    options = config.pretrain
    return plain_training(
        config,
        job,
        model,
        name=name,
        folder=folder,
        run=run,
        key=getattr(job_lib.make_keys(config.seed), seed_of),
        schedule=schedules.drops(
            options.pretrain_lr, options.pretrain_drop_epochs, steps_per_epoch=job.steps_per_epoch
        ),
        num_epochs=options.pretrain_epochs,
    )


def plain_training(
    config: Config,
    job: Job,
    model: Any,
    *,
    name: str,
    folder: Path,
    run: str,
    key: jax.Array,
    schedule: optax.Schedule,
    num_epochs: int,
) -> stage.Stage:
    """Makes a stage of training without penalty, with a row of metrics.csv for each epoch."""
    return stage.Stage(
        name=name,
        checkpoints=folder / "checkpoints",
        table=folder / "metrics.csv",
        run=run,
        key=key,
        model=model,
        optimizer=schedules.sgd(config, schedule),
        learning_rate=schedule,
        num_steps=num_epochs * job.steps_per_epoch,
        row_steps=job.steps_per_epoch,
        measure=measure.make_columns(config, job, model),
        describe=lambda row: _describe_epoch(name, row, num_epochs),
    )


def _describe_epoch(name: str, row: Row, num_epochs: int) -> str:
    """Returns a row of metrics.csv in words."""
    jsv = f"  JSV {row['jsv_mean']:.4f}" if "jsv_mean" in row else ""
    return (
        f"{name} {row['epoch']:>3}/{num_epochs}  learning rate {row['learning_rate']:g}  "
        f"loss {row['train_loss']:.3f}  test loss {row['test_loss']:.3f}  "
        f"test accuracy {row['test_accuracy']:.2%}{jsv}  {screen.duration(row['seconds'])}"
    )
