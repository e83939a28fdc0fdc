"""The second stage of a run: train what is left, on from where a former session ended.

Order and augmentation of the images depend on key, epoch and step alone, and a checkpoint holds the
sums of an epoch so far: a training that resumes, in the middle of an epoch too, repeats the
undisturbed one bit for bit.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from rich.console import Console

from experiments.cifar import spectrum
from experiments.cifar.config import Config
from experiments.cifar.job import Job, make_keys
from experiments.processes import distributed
from experiments.shell import console as screen
from experiments.shell.errors import Preempted, RunFailed
from experiments.storage import run_folder
from experiments.storage.run_folder import Row
from experiments.training import checkpoints
from experiments.training import failures as faults
from experiments.training import steps as training
from experiments.training.checkpoints import Progress
from experiments.training.steps import EpochSums, TrainState
from ntksap_jax import masks
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
    state = training.init_state(
        variables["params"], variables.get("batch_stats", {}), mask, job.optimizer
    )

    def say(text: str) -> None:
        console.print(f"warning: {text}", soft_wrap=True)

    with _open_checkpoints(folder, mask) as saver:
        state, progress = _restore(saver, state, folder, say=say)
        state = distributed.replicate(state, job.mesh)
        rows = list(progress.rows)
        record = _record(config, job, variables, mask, folder, rows)
        with screen.track(
            console, "Training", done=int(state.step), total=num_epochs * steps, unit="step"
        ) as tracker:
            for epoch in range(len(rows) + 1, num_epochs + 1):
                on_step = _after_step(
                    saver,
                    progress,
                    steps_before=(epoch - 1) * steps,
                    steps_per_epoch=steps,
                    save_minutes=config.save_minutes,
                    stop_requested=stop_requested,
                    advance=tracker.advance,
                )
                try:
                    state, row = train_epoch(config, job, state, epoch, progress, on_step)
                except training.Diverged as error:
                    raise _failure(config, job, error, epoch, folder) from error
                rows.append(row)
                record(rows, state)
                progress = Progress(tuple(rows))
                saver.save(epoch * steps, state, progress)
                tracker.line(_describe_epoch(row, num_epochs))
                if stop_requested():
                    raise Preempted
    return rows


# -- What is saved, by the leader ----------------------------------------------------------------


class _Saver(NamedTuple):
    """The checkpoints of a run; in processes other than the leader there is no manager."""

    manager: ocp.CheckpointManager | None
    run: str

    def save(self, step: int, state: TrainState, progress: Progress) -> None:
        if self.manager is not None:
            checkpoints.save(self.manager, step, state, progress, run=self.run)


@contextlib.contextmanager
def _open_checkpoints(folder: Path, mask: Mask) -> Iterator[_Saver]:
    if not distributed.is_leader():
        yield _Saver(None, "")
        return
    with checkpoints.open_manager(folder / "checkpoints") as manager:
        yield _Saver(manager, run_folder.identity(folder, masks.digest(mask)))


def _restore(
    saver: _Saver, state: TrainState, folder: Path, *, say: Callable[[str], None]
) -> tuple[TrainState, Progress]:
    """Returns state and progress of the last intact checkpoint; if there is none, of the start."""
    found: tuple[TrainState, Progress] = state, Progress()
    if saver.manager is not None:
        restored = checkpoints.restore_last(saver.manager, state, run=saver.run, say=say)
        if restored is None and (folder / "metrics.csv").exists():
            say("no checkpoint was complete yet: the training begins again with its first epoch")
        found = found if restored is None else restored
    state = distributed.arrays_from_leader(lambda: found[0], like=state)
    rows, sums, seconds = distributed.from_leader(lambda: found[1])
    return state, Progress(tuple(rows), EpochSums(*sums), seconds)


def _record(
    config: Config, job: Job, variables: Any, mask: Mask, folder: Path, rows: list[Row]
) -> Callable[[list[Row], TrainState], None]:
    """Brings what people read up to date, and returns what does so after each further epoch."""
    if not distributed.is_leader():
        return lambda rows, state: None
    table = folder / "metrics.csv"
    if rows:
        # What people read follows what is verified.
        run_folder.write_table(table, rows)
    measure_spectrum = spectrum.follow(
        config, job, variables["params"], mask, folder, done=len(rows)
    )

    def record(rows: list[Row], state: TrainState) -> None:
        run_folder.write_table(table, rows)
        measure_spectrum(len(rows), distributed.local(state.params))

    return record


def _after_step(
    saver: _Saver,
    progress: Progress,
    *,
    steps_before: int,
    steps_per_epoch: int,
    save_minutes: float,
    stop_requested: Callable[[], bool],
    advance: Callable[[], None],
) -> Callable[[TrainState, Callable[[], EpochSums]], None]:
    """Returns what is called after each step of an epoch: it saves now and then, and on SIGTERM.

    Not after the last step: the evaluation comes first, and is saved with the epoch.
    """
    started = last = time.monotonic()
    first = in_epoch = progress.sums.num_steps

    def after_step(state: TrainState, sums: Callable[[], EpochSums]) -> None:
        nonlocal last, in_epoch
        advance()
        in_epoch += 1
        now = time.monotonic()
        if in_epoch == steps_per_epoch:
            return
        stop = stop_requested()
        # Clocks differ: processes save together only where all of them look at the losses anyway.
        may_save = not distributed.is_joined() or (in_epoch - first) % training.CHECK_EVERY == 0
        if stop or (may_save and now - last >= 60 * save_minutes):
            so_far = Progress(progress.rows, sums(), progress.seconds + now - started)
            saver.save(steps_before + in_epoch, state, so_far)
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
        _placed(job, job.dataset.test_batches(size, part=distributed.part())),
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
        make_keys(config.seed).order,
        epoch,
        config.training.batch_size,
        start=start,
        part=distributed.part(),
    )
    return _placed(job, batches)


def _placed(job: Job, batches: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    return (distributed.shard_batch(batch, job.mesh) for batch in batches)


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
    # The others wait for it: who fails first ends all.
    place = distributed.from_leader(
        lambda: str(faults.save(folder, about, state=state, batch=batch))
    )
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
            return distributed.local(state), distributed.gathered(batch)
        state, _ = job.train_step(key, state, *batch)
    raise AssertionError(f"step {error.step} is not in epoch {epoch}")


def _describe_epoch(row: Row, num_epochs: int) -> str:
    return (
        f"epoch {row['epoch']:>3}/{num_epochs}  learning rate {row['learning_rate']:.4f}  "
        f"loss {row['train_loss']:.3f}  test loss {row['test_loss']:.3f}  "
        f"test accuracy {row['test_accuracy']:.2%}  {screen.duration(row['seconds'])}"
    )
