"""One stage of training, on from where a former session ended.

Order and augmentation of the images depend on key and step alone, and a checkpoint holds the sums
of the row so far: a stage that resumes repeats the undisturbed one bit for bit.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from experiments import data
from experiments.shell import console as screen
from experiments.shell.errors import Preempted, RunFailed
from experiments.storage import run_folder
from experiments.storage.run_folder import Row
from experiments.tpp import steps
from experiments.tpp.config import Config
from experiments.tpp.job import Job
from experiments.training import checkpoints
from experiments.training import failures as faults
from experiments.training.checkpoints import Progress
from experiments.training.steps import EpochSums, TrainState

SCANNED_STEPS = 100
"""In one compiled loop."""
LOOPED_STEPS = 10
"""Between two looks at losses and signals, without one."""


class Stage(NamedTuple):
    """What a stage trains, and how.

    Attributes:
        name: in words, for the screen.
        checkpoints: folder of its checkpoints.
        table: file with a row for every `row_steps` steps.
        run: identifies what is computed, for the checkpoints.
        key: decides order and augmentation.
        model: the network.
        optimizer: penalties included.
        learning_rate: by step, for the table.
        num_steps: length.
        row_steps: steps from one row of the table to the next.
        measure: `measure(state) -> columns`, after the last step of each row.
        describe: `describe(row) -> text` for the screen.
    """

    name: str
    checkpoints: Path
    table: Path
    run: str
    key: jax.Array
    model: nn.Module
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    num_steps: int
    row_steps: int
    measure: Callable[[TrainState], dict[str, float]]
    describe: Callable[[Row], str]


def carry_out(
    stage: Stage,
    variables: Any,
    config: Config,
    job: Job,
    console: Console,
    *,
    stop_requested: Callable[[], bool],
) -> tuple[dict[str, Any], list[Row]]:
    """Trains to the end of the stage, on from its last checkpoint.

    Args:
        stage: what to do.
        variables: of `stage.model`, at the beginning of the stage.
        config: of the run.
        job: the data.
        console: where progress goes.
        stop_requested: says whether SIGTERM came.

    Returns:
        The variables at its end, and the rows of its table.

    Raises:
        UserError: no checkpoint is intact.
        RunFailed: a loss that is not finite.
        Preempted: SIGTERM came; what was done is saved.
    """
    order_key, augmentation_key = jax.random.split(stage.key)
    state = steps.init_state(variables, stage.optimizer)
    take_steps = steps.make_take_steps(
        stage.model, stage.optimizer, job.augment, is_scanned=job.is_scanned
    )
    with checkpoints.open_manager(stage.checkpoints) as manager:
        restored = checkpoints.restore_last(
            manager,
            state,
            run=stage.run,
            say=lambda text: console.print(f"warning: {text}", soft_wrap=True),
        )
        progress = Progress()
        if restored is not None:
            state, progress = restored
        start = int(state.step)

        def save(step: int, progress: Progress) -> None:
            # A copy, for the next step takes this state's memory while the save goes on.
            checkpoints.save(manager, step, steps.copy(state), progress, run=stage.run)

        with screen.track(
            console, stage.name, done=start, total=stage.num_steps, unit="step"
        ) as tracker:
            begun = saved = time.monotonic()
            for step, batches in _chunks(order_key, stage, config, job, start=start):
                state, found = take_steps(
                    augmentation_key, state, job.images, job.labels, jnp.asarray(batches)
                )
                sums = _add(progress.sums, jax.device_get(found), len(batches), config.batch_size)
                if not np.isfinite(sums.loss):
                    raise RunFailed(_describe_failure(stage, state, step))
                for _ in batches:
                    tracker.advance()
                progress = progress._replace(sums=sums)
                if step % stage.row_steps == 0 or step == stage.num_steps:
                    seconds = progress.seconds + time.monotonic() - begun
                    row = _row(stage, state, sums, step, seconds)
                    progress, begun = Progress((*progress.rows, row)), time.monotonic()
                    run_folder.write_table(stage.table, progress.rows)
                    tracker.line(stage.describe(row))
                now = time.monotonic()
                stop = stop_requested()
                if stop or step == stage.num_steps or now - saved >= 60 * config.save_minutes:
                    save(step, progress._replace(seconds=progress.seconds + now - begun))
                    saved = now
                if stop:
                    raise Preempted
    return steps.variables_of(state), list(progress.rows)


def _chunks(
    key: jax.Array, stage: Stage, config: Config, job: Job, *, start: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields batches to take at once, and the number of steps that are done after them.

    Their ends do not depend on where a session began, and nearly all have one length: every length
    is compiled for. Epochs follow one another within them.
    """

    @functools.lru_cache(maxsize=2)
    def of_epoch(epoch: int) -> np.ndarray:
        epoch_key = jax.random.fold_in(key, epoch)
        return data.epoch_batches(epoch_key, job.dataset.num_train, config.batch_size)

    size = SCANNED_STEPS if job.is_scanned else LOOPED_STEPS
    while start < stage.num_steps:
        row_end = start - start % stage.row_steps + stage.row_steps
        in_row = start % stage.row_steps
        end = min(stage.num_steps, row_end, start + size - in_row % size)
        places = (divmod(step, job.steps_per_epoch) for step in range(start, end))
        yield end, np.stack([of_epoch(epoch)[index] for epoch, index in places])
        start = end


def _add(sums: EpochSums, found: Any, num_steps: int, batch_size: int) -> EpochSums:
    return EpochSums(
        sums.loss + float(found.loss),
        sums.num_correct + int(found.num_correct),
        sums.num_examples + num_steps * batch_size,
        sums.num_steps + num_steps,
    )


def _row(stage: Stage, state: TrainState, sums: EpochSums, step: int, seconds: float) -> Row:
    return {
        "epoch": -(-step // stage.row_steps),
        "step": step,
        "learning_rate": float(stage.learning_rate(step - 1)),
        "train_loss": sums.loss / sums.num_steps,
        "train_accuracy": sums.num_correct / sums.num_examples,
        **stage.measure(state),
        "seconds": round(seconds, 3),
    }


def _describe_failure(stage: Stage, state: TrainState, step: int) -> str:
    return (
        f"{stage.name}: the loss is not finite within the steps up to {step}: "
        f"{faults.describe_weights(state.params)}. Try a lower learning rate"
    )
