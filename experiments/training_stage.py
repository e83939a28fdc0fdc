"""The second stage of a run: train what is left, on from where a former session ended.

Order and augmentation of the images depend on key, epoch and step alone, and a checkpoint holds the
sums of an epoch so far: a training that resumes, in the middle of an epoch too, repeats the
undisturbed one bit for bit.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from rich.console import Console

from experiments import checkpoints, faults, run_folder, spectrum, training
from experiments import console as screen
from experiments.checkpoints import Progress
from experiments.config import Config
from experiments.faults import RunFailed
from experiments.interruption import Preempted
from experiments.job import Job, make_keys
from experiments.run_folder import Row
from experiments.training import EpochSums, TrainState
from ntksap_jax import masks, sharding
from ntksap_jax.types import Mask

EVAL_BATCH_SIZE = 500


def train(
    config: Config,
    job: Job,
    variables: Any,
    mask: Mask,
    folder: Path,
    console: Console,
    *,
    stop_requested: Callable[[], bool],
) -> list[Row]:
    """Trains what is left, on from the last intact checkpoint; returns a row an epoch.

    Raises:
        UserError: no checkpoint is intact.
        RunFailed: a loss that is not finite.
        Preempted: SIGTERM came; the last step is saved.
    """
    num_epochs, steps = config.training.epochs, job.steps_per_epoch
    run = run_folder.identity(folder, masks.digest(mask))
    state = training.init_state(
        variables["params"], variables.get("batch_stats", {}), mask, job.optimizer
    )
    state = sharding.replicate(state, job.mesh)

    def say(text: str) -> None:
        console.print(f"warning: {text}", soft_wrap=True)

    with checkpoints.open_manager(folder / "checkpoints") as manager:
        restored = checkpoints.restore_last(manager, state, run=run, say=say)
        if restored is None and (folder / "metrics.csv").exists():
            say("no checkpoint was complete yet: the training begins again with its first epoch")
        state, progress = (state, Progress()) if restored is None else restored
        rows = list(progress.rows)
        if rows:
            # What people read follows what is verified.
            run_folder.write_table(folder / "metrics.csv", rows)
        measure_spectrum = spectrum.follow(
            config, job, variables["params"], mask, folder, done=len(rows)
        )
        with screen.track(
            console, "Training", done=int(state.step), total=num_epochs * steps, unit="step"
        ) as tracker:
            for epoch in range(len(rows) + 1, num_epochs + 1):
                on_step = _after_step(
                    manager,
                    progress,
                    steps_before=(epoch - 1) * steps,
                    steps_per_epoch=steps,
                    save_minutes=config.save_minutes,
                    run=run,
                    stop_requested=stop_requested,
                    advance=tracker.advance,
                )
                try:
                    state, row = train_epoch(config, job, state, epoch, progress, on_step)
                except training.Diverged as error:
                    raise _failure(config, job, error, epoch, folder) from error
                rows.append(row)
                run_folder.write_table(folder / "metrics.csv", rows)
                measure_spectrum(epoch, state.params)
                progress = Progress(tuple(rows))
                checkpoints.save(manager, epoch * steps, state, progress, run=run)
                tracker.line(_describe_epoch(row, num_epochs))
                if stop_requested():
                    raise Preempted
    return rows


def _after_step(
    manager: ocp.CheckpointManager,
    progress: Progress,
    *,
    steps_before: int,
    steps_per_epoch: int,
    save_minutes: float,
    run: str,
    stop_requested: Callable[[], bool],
    advance: Callable[[], None],
) -> Callable[[TrainState, Callable[[], EpochSums]], None]:
    """Returns what is called after each step of an epoch: it saves now and then, and on SIGTERM.

    Not after the last step: the evaluation comes first, and is saved with the epoch.
    """
    started = last = time.monotonic()
    in_epoch = progress.sums.num_steps

    def after_step(state: TrainState, sums: Callable[[], EpochSums]) -> None:
        nonlocal last, in_epoch
        advance()
        in_epoch += 1
        now = time.monotonic()
        if in_epoch == steps_per_epoch:
            return
        stop = stop_requested()
        if stop or now - last >= 60 * save_minutes:
            so_far = Progress(progress.rows, sums(), progress.seconds + now - started)
            checkpoints.save(manager, steps_before + in_epoch, state, so_far, run=run)
            last = now
        if stop:
            raise Preempted

    return after_step


def train_epoch(
    config: Config,
    job: Job,
    state: TrainState,
    epoch: int,
    progress: Progress,
    on_step: Callable[[TrainState, Callable[[], EpochSums]], None],
) -> tuple[TrainState, Row]:
    """Trains for the rest of an epoch and evaluates; returns the state and a row of metrics.csv."""
    started = time.perf_counter()
    keys = make_keys(config.seed)
    state, on_train = training.train_epoch(
        keys.augmentation,
        state,
        _batches(config, job, epoch, start=progress.sums.num_steps),
        train_step=job.train_step,
        sums=progress.sums,
        on_step=on_step,
    )
    size = -(-EVAL_BATCH_SIZE // job.mesh.size) * job.mesh.size
    on_test = training.evaluate(
        state,
        (sharding.shard_batch(batch, job.mesh) for batch in job.dataset.test_batches(size)),
        eval_step=job.eval_step,
    )
    step = int(state.step)
    schedule = training.learning_rate(config.training, job.steps_per_epoch)
    return state, {
        "epoch": epoch,
        "step": step,
        "learning_rate": float(schedule(step - 1)),
        "train_loss": on_train.loss,
        "train_accuracy": on_train.accuracy,
        "test_loss": on_test.loss,
        "test_accuracy": on_test.accuracy,
        "seconds": round(progress.seconds + time.perf_counter() - started, 3),
    }


def _batches(config: Config, job: Job, epoch: int, *, start: int) -> Iterator[tuple[Any, Any]]:
    batches = job.dataset.train_batches(
        make_keys(config.seed).order, epoch, config.training.batch_size, start=start
    )
    return (sharding.shard_batch(batch, job.mesh) for batch in batches)


# -- A loss that is not finite -------------------------------------------------------------------


def _failure(
    config: Config, job: Job, error: training.Diverged, epoch: int, folder: Path
) -> RunFailed:
    """Saves the state before the step that failed, and its batch; says what to do."""
    state, batch = _before(config, job, error, epoch)
    key = make_keys(config.seed).augmentation
    about = {
        "error": str(error),
        "epoch": epoch,
        "step": error.step,
        "key": jax.random.key_data(key).tolist(),
        "command": shlex.join(sys.argv[1:]),
    }
    place = faults.save(folder, about, state=state, batch=batch)
    return RunFailed(
        f"{error} (epoch {epoch}): {faults.describe_weights(state.params)}. Try a lower "
        "--learning-rate, a longer --warmup-epochs, or --resume --debug-nans to find the "
        f"operation; state and batch before that step are in {place}"
    )


def _before(
    config: Config, job: Job, error: training.Diverged, epoch: int
) -> tuple[TrainState, tuple[Any, Any]]:
    """Repeats the steps from the last state that was checked up to the one that failed."""
    key, state = make_keys(config.seed).augmentation, error.state
    start = int(state.step) - (epoch - 1) * job.steps_per_epoch
    batches = _batches(config, job, epoch, start=start)
    for step, batch in enumerate(batches, start=int(state.step) + 1):
        if step == error.step:
            return state, jax.tree.map(np.asarray, batch)
        state, _ = job.train_step(key, state, *batch)
    raise AssertionError(f"step {error.step} is not in epoch {epoch}")


def _describe_epoch(row: Row, num_epochs: int) -> str:
    return (
        f"epoch {row['epoch']:>3}/{num_epochs}  learning rate {row['learning_rate']:.4f}  "
        f"loss {row['train_loss']:.3f}  test loss {row['test_loss']:.3f}  "
        f"test accuracy {row['test_accuracy']:.2%}  {screen.duration(row['seconds'])}"
    )
