"""Training without penalty: of the dense network, and of the small one that is left of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from experiments.processes import distributed
from experiments.shell import console as screen
from experiments.storage import run_folder
from experiments.storage.run_folder import Row
from experiments.tpp import measure, shared
from experiments.tpp.config import Config, Recipe
from experiments.tpp.job import Job, init_variables, sgd
from experiments.tpp.measure import Network
from experiments.training import inputs, loop, steps
from experiments.training.loop import Session, Stage
from experiments.training.steps import TrainState


def pretrained(config: Config, job: Job, session: Session) -> Any:
    """Returns the dense network: trained by an earlier run, trained on, or trained now.

    Raises:
        UserError: its checkpoints are damaged.
        RunFailed, Preempted: as `loop.train` does.
    """
    start = Network(job.model, init_variables(job, job.model, job.keys.init))
    identity = shared.dense_identity(config, job)
    with shared.folder(config, "dense", identity, session.stop_requested) as (folder, run):
        variables, rows = train(
            *(config, job, session, start, config.pretrain.recipe),
            name="Pretraining",
            folder=folder,
            run=run,
            key=job.keys.pretrain,
        )
        if distributed.is_leader():
            run_folder.write_json(folder / "summary.json", rows[-1])
    return variables


def train(
    config: Config,
    job: Job,
    session: Session,
    network: Network,
    recipe: Recipe,
    *,
    name: str,
    folder: Path,
    run: str,
    key: jax.Array,
) -> tuple[Any, list[Row]]:
    """Trains a network, with a row of metrics.csv for each epoch; see `loop.train`.

    `network` is dense or small, with its variables at the beginning; `key` decides the order and
    the augmentation of the images. The others are as in `Stage`.
    """
    per_epoch = job.images.steps_per_epoch
    schedule = steps.drops(recipe.learning_rate, recipe.drop_epochs, steps_per_epoch=per_epoch)
    optimizer = sgd(config, schedule)
    eval_step = steps.make_eval_step(network.model, job.images.normalise)
    jsv = measure.linear_jsv(network.model, job.images) if job.is_linear else None

    def columns(state: TrainState) -> dict[str, float]:
        scores = inputs.test_columns(job.images, state, eval_step=eval_step)
        if jsv is not None:
            scores["jsv_mean"] = jsv(jax.device_get(state.variables))["mean"]
        return scores

    def describe(row: Row) -> str:
        jsv = f"  JSV {row['jsv_mean']:.4f}" if "jsv_mean" in row else ""
        return (
            f"{name.lower()} {row['epoch']:>3}/{recipe.epochs}  learning rate "
            f"{row['learning_rate']:g}  loss {row['train_loss']:.3f}  test loss "
            f"{row['test_loss']:.3f}  test accuracy {row['test_accuracy']:.2%}{jsv}  "
            f"{screen.duration(row['seconds'])}"
        )

    stage = Stage(
        name=name,
        folder=folder,
        table="metrics.csv",
        run=run,
        keys=tuple(jax.random.split(key)),
        train_step=steps.make_train_step(network.model, optimizer, job.images.augment),
        learning_rate=schedule,
        num_steps=recipe.epochs * per_epoch,
        row_steps=per_epoch,
        measure=columns,
        describe=describe,
        advice="a lower learning rate",
    )
    return loop.train(stage, steps.init_state(network.variables, optimizer), job.images, session)
