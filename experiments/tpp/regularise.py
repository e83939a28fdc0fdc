"""The stage before filters are removed: training with a penalty, on the dense network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.processes import distributed
from experiments.shell import console as screen
from experiments.shell.configuration import to_dict
from experiments.storage import run_folder
from experiments.storage.run_folder import Row
from experiments.tpp import shared
from experiments.tpp.config import Config
from experiments.tpp.job import Job, sgd
from experiments.tpp.methods import METHODS
from experiments.tpp.selection import Keep, indices_of
from experiments.training import loop, steps
from experiments.training.loop import Session, Stage
from experiments.training.steps import TrainState
from ntksap_jax.structured import baselines, tpp

MAX_ROWS = 100
"""Of regularise.csv; after each a checkpoint is saved."""


class Regulariser(NamedTuple):
    """What the stage adds to training; `penalty(params, step)` is what the loss grows by."""

    optimizer: optax.GradientTransformation
    penalty: Callable[[Any, Any], jax.Array]
    strength: Callable[[int], float]
    num_steps: int


def make(config: Config, job: Job, keep: Keep) -> Regulariser:
    """Makes the regulariser of the method."""
    options, channels = config.regularise, job.channels
    inner = sgd(config, options.reg_lr)
    kind = METHODS[config.method].regulariser
    if kind in ("tpp", "greg1"):
        settings = options.settings
        if kind == "greg1":
            names = ("gram_weight", "l2", "zero_out_interval")
            settings = settings._replace(**{n: getattr(baselines.GREG1, n) for n in names})
        return Regulariser(
            optimizer=tpp.regularise(inner, channels, keep, settings),
            penalty=lambda params, step: tpp.penalty(
                params, channels, keep, strength=tpp.strength(step, settings), settings=settings
            ),
            strength=lambda step: float(tpp.strength(step, settings)),
            num_steps=tpp.num_steps(settings),
        )

    def orthogonality(params: Any) -> jax.Array:
        if kind == "kernorth":
            return options.orth_weight * baselines.kernorth(params, channels)
        return options.orth_weight * baselines.orthconv(
            params, channels, stride=options.orth_stride
        )

    return Regulariser(
        optimizer=optax.chain(baselines.add_penalty(orthogonality), inner),
        penalty=lambda params, step: orthogonality(params),
        strength=lambda step: options.orth_weight,
        num_steps=options.orth_steps,
    )


def carry_out(
    config: Config, job: Job, variables: Any, keep: Keep, folder: Path, session: Session
) -> tuple[Any, list[Row]]:
    """Regularises the dense network, unless a run with another fine-tuning has done so.

    Returns:
        The variables, and the rows of regularise.csv, which are copied into the run's folder.

    Raises:
        UserError, RunFailed, Preempted: as `loop.train` does.
    """
    identity = {
        **shared.dense_identity(config, job),
        "method": config.method,
        "regularise": to_dict(config.regularise),
        "keep": indices_of(keep),
    }
    regulariser = make(config, job, keep)
    with shared.folder(config, "regularised", identity, session.stop_requested) as (place, run):
        stage = make_stage(config, job, keep, regulariser, folder=place, run=run)
        state = steps.init_state(variables, regulariser.optimizer)
        variables, rows = loop.train(stage, state, job.images, session)
    if distributed.is_leader():
        run_folder.write_table(folder / "regularise.csv", rows)
    return variables, rows


def make_stage(
    config: Config, job: Job, keep: Keep, regulariser: Regulariser, *, folder: Path, run: str
) -> Stage:
    """Makes the stage; regularise.csv gets penalty and filter sizes, in all and by layer."""

    @jax.jit
    def measure(params: Any, step: Any) -> Any:
        return regulariser.penalty(params, step), tpp.magnitudes(params, job.channels, keep)

    def columns(state: TrainState) -> dict[str, float]:
        last = int(state.step) - 1
        penalty, sizes = jax.device_get(measure(jax.device_get(state.params), last))
        values = {"strength": regulariser.strength(last), "penalty": float(penalty)}
        for what in ("kept", "pruned"):
            by_layer = {path: float(getattr(size, what)) for path, size in sizes.items()}
            if by_layer:
                values[f"{what}_size"] = float(np.mean(list(by_layer.values())))
            values |= {f"{what}_size/{path}": value for path, value in by_layer.items()}
        return values

    def describe(row: Row) -> str:
        sizes = (
            f"  mean |w| kept {row['kept_size']:.2e}, pruned {row['pruned_size']:.2e}"
            if "kept_size" in row
            else ""
        )
        return (
            f"regularising {row['step']:>6}/{regulariser.num_steps}  strength "
            f"{row['strength']:.3f}  loss {row['train_loss']:.3f}  penalty {row['penalty']:.3g}"
            f"{sizes}  {screen.duration(row['seconds'])}"
        )

    return Stage(
        name="Regularising",
        folder=folder,
        table="regularise.csv",
        run=run,
        keys=tuple(jax.random.split(job.keys.regularise)),
        train_step=steps.make_train_step(job.model, regulariser.optimizer, job.images.augment),
        learning_rate=lambda step: config.regularise.reg_lr,
        num_steps=regulariser.num_steps,
        row_steps=-(-regulariser.num_steps // MAX_ROWS),
        measure=columns,
        describe=describe,
        advice="a lower --reg-lr",
    )
