"""Trained weights of an earlier run, to prune and train on from: `--weights RUN_FOLDER`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.cifar import config as config_lib
from experiments.cifar.config import Config
from experiments.shell import errors
from experiments.shell.errors import UserError
from experiments.storage import run_folder
from experiments.training import checkpoints, steps
from ntksap_jax import masks


def load(folder: Path, config: Config, shapes: Any) -> Any:
    """Reads the weights and running statistics after the last epoch of a complete run.

    Args:
        folder: the run folder.
        config: of the run that goes on from there.
        shapes: of the variables of its network, with their types.

    Returns:
        The model's variables, `"params"` and `"batch_stats"`; pruned weights of the run are 0.

    Raises:
        UserError: no complete run, or one of another network.
    """
    with errors.at(f"--weights {folder}"):
        if not run_folder.is_complete(folder):
            raise UserError("no complete run is there (no summary.json)")
        source = config_lib.from_dict(run_folder.read_config(folder), "config.json")
        for what, ours, theirs in (
            ("network", config.model, source.model),
            ("data set", config.dataset, source.dataset),
        ):
            if ours != theirs:
                raise UserError(f"its {what} is {theirs}, this run's is {ours}")
        if not (folder / "checkpoints").is_dir():
            raise UserError("it has no checkpoints")
        like = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        with errors.at("config.json"):
            mask = masks.create(like["params"], exclude=source.search.exclude)
        optimizer = steps.make_optimizer(source.training, steps_per_epoch=1)
        state = steps.init_state(like, optimizer, mask)
        run = run_folder.identity(folder, str(run_folder.read_summary(folder).get("mask_sha256")))
        with checkpoints.open_manager(folder / "checkpoints", read_only=True) as manager:
            try:
                step = manager.latest_step() or 0
                state, progress = checkpoints.restore(manager, step, state, run=run)
            except checkpoints.Damaged as error:
                raise UserError(f"its last checkpoint: {error}") from error
        if len(progress.rows) != source.training.epochs:
            raise UserError(
                f"its last checkpoint, after epoch {source.training.epochs}, is not there. Choose "
                "another run"
            )
    return {"params": state.params, "batch_stats": state.batch_stats}
