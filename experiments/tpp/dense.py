"""The dense network: pretrained once, and kept for all runs that start from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.processes import distributed
from experiments.shell.configuration import to_dict
from experiments.storage import run_folder
from experiments.tpp import shared, training_stages
from experiments.tpp.config import Config
from experiments.tpp.job import Job, init_variables, make_keys
from experiments.training import loop
from experiments.training.loop import Session

WHAT_COUNTS = (
    *("dataset", "image_size", "augment", "model", "width", "seed"),
    *("batch_size", "momentum", "weight_decay", "pretrain"),
)
"""Fields of the configuration that the dense network depends on."""


def identity(config: Config, job: Job) -> dict[str, Any]:
    """Returns all that the dense network of a configuration depends on."""
    values = to_dict(config)
    return {**{name: values[name] for name in WHAT_COUNTS}, "data": job.images.dataset.source}


def folder_of(config: Config, job: Job) -> Path:
    """Returns the folder of the dense network that a configuration asks for."""
    return shared.path(config, "dense", identity(config, job))


def is_there(config: Config, job: Job) -> bool:
    """Says whether the dense network was trained to the end."""
    return run_folder.is_complete(folder_of(config, job))


def pretrained(config: Config, job: Job, session: Session) -> Any:
    """Returns the dense network: trained by an earlier run, trained on, or trained now.

    Raises:
        UserError: its checkpoints are damaged.
        RunFailed, Preempted: as `loop.train` does.
    """
    keys = make_keys(config.seed)
    variables = init_variables(config, job, job.model, keys.init)
    with shared.folder(config, "dense", identity(config, job)) as (folder, run):
        stage, state = training_stages.from_scratch(
            *(config, job, job.model, variables),
            name="Pretraining",
            folder=folder,
            run=run,
            key=keys.pretrain,
        )
        variables, rows = loop.train(stage, state, job.images, session)
        if distributed.is_leader():
            run_folder.write_json(folder / "summary.json", rows[-1])
    return variables


def accuracy_if_there(config: Config, job: Job) -> float | None:
    """Returns the dense network's test accuracy, if it was trained already."""
    if not is_there(config, job):
        return None
    return run_folder.read_summary(folder_of(config, job))["test_accuracy"]
