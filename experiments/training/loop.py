"""One stage of training, on from where a former session ended.

Order and augmentation of the images depend on key and step alone, and a checkpoint holds the sums
of the row so far: a stage that resumes, in the middle of an epoch too, repeats the undisturbed one
bit for bit.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from rich.console import Console

from experiments.processes import distributed
from experiments.shell import console as screen
from experiments.shell.errors import Preempted, RunFailed
from experiments.storage import run_folder
from experiments.storage.run_folder import Row
from experiments.training import checkpoints, failures, inputs, tensorboard
from experiments.training.checkpoints import Progress, Sums
from experiments.training.inputs import Inputs
from experiments.training.steps import StepMetrics, TrainState, TrainStep

CHECK_EVERY = 50
"""Steps between two looks at the losses: each look waits for the device."""


class Session(NamedTuple):
    """How a program runs, whatever it computes."""

    console: Console  # Where progress goes.
    # Says whether SIGTERM came; all processes ask equally often.
    stop_requested: Callable[[], bool]
    save_minutes: float  # Between two checkpoints within a row.
    tensorboard: bool = False  # Whether tables are written as TensorBoard events too.

    def warn(self, text: str) -> None:
        """Prints a warning, a line of its own."""
        self.console.print(f"warning: {text}", soft_wrap=True)


class Stage(NamedTuple):
    """What is trained, and how."""

    name: str  # In a word, for the screen.
    folder: Path  # Where `checkpoints/`, the table and, if it comes to that, `failure/` go.
    table: str  # File name of the table, with a row for every `row_steps` steps.
    run: str  # Identifies what is computed, for the checkpoints.
    keys: Sequence[jax.Array]  # Decide which images form a batch, and how they are augmented.
    train_step: TrainStep  # From `steps.make_train_step`.
    learning_rate: optax.Schedule  # By step, for the table.
    num_steps: int  # Length.
    row_steps: int  # Steps from one row of the table to the next.
    # `measure(state) -> columns`, after the last step of each row; the state is on all devices, and
    # all processes call it.
    measure: Callable[[TrainState], dict[str, float]]
    describe: Callable[[Row], str]  # `describe(row) -> text` for the screen.
    advice: str  # What to try if the loss is not finite.
    # `follow(number of rows) -> after_row(number, params)`: called by the leader before the first
    # step, and what it returns after each row.
    follow: Callable[[int], Callable[[int, Any], None]] = lambda done: lambda number, params: None


class Diverged(Exception):
    """The loss became infinite or NaN.

    First so at `step`, from 1 over the whole stage; `state` is that before it or a little earlier.
    """

    def __init__(self, step: int, state: TrainState, cause: str = "the loss is not finite") -> None:
        super().__init__(f"{cause} at step {step}")
        self.step, self.state = step, state


def train(
    stage: Stage, state: TrainState, images: Inputs, session: Session
) -> tuple[dict[str, Any], list[Row]]:
    """Trains to the end of the stage, on from its last intact checkpoint.

    Returns:
        The variables at the end, on one device, and the rows of the table.

    Raises:
        UserError: no checkpoint is intact.
        RunFailed: a loss that is not finite.
        Preempted: SIGTERM came; the last step is saved.
    """
    order_key, key = stage.keys
    with contextlib.ExitStack() as stack:
        manager = None
        if distributed.is_leader():
            manager = stack.enter_context(checkpoints.open_manager(stage.folder / "checkpoints"))
        state, progress = _restore(stage, state, manager, session)
        state = distributed.replicate(state, images.mesh)
        rows, sums, start = list(progress.rows), progress.sums, int(state.step)
        record = stack.enter_context(_recorder(stage, rows, session))
        console, end = session.console, stage.num_steps
        tracker = stack.enter_context(
            screen.track(console, stage.name, done=start, total=end, unit="step")
        )
        batches = inputs.train_batches(images, order_key, start=start)
        begun, saved = time.perf_counter() - progress.seconds, time.monotonic()
        # For the failure report: up to this state all losses were finite. It costs memory.
        checked = state
        pending: list[StepMetrics] = []

        def look() -> None:
            """Adds up the losses since the last look, for which it waits for the device."""
            nonlocal sums, checked
            for step, metrics in enumerate(jax.device_get(pending), start=int(checked.step) + 1):
                if not np.isfinite(metrics.loss):
                    raise Diverged(step, checked)
                sums = Sums(
                    sums.loss + float(metrics.loss),
                    sums.num_correct + int(metrics.num_correct),
                    sums.num_examples + images.batch_size,
                    sums.num_steps + 1,
                )
            pending.clear()
            checked = state

        try:
            for step in range(start + 1, end + 1):
                try:
                    state, metrics = stage.train_step(key, state, *next(batches))
                except FloatingPointError as error:
                    what = f"--debug-nans found an {failures.operation(error)},"
                    raise Diverged(step, state, what) from error
                pending.append(metrics)
                tracker.advance()
                ends_row = step % stage.row_steps == 0 or step == end
                must_look = ends_row or len(pending) == CHECK_EVERY
                if must_look:
                    look()
                if ends_row:
                    rows.append(_row(stage, state, sums, begun))
                    record(rows, state)
                    tracker.line(stage.describe(rows[-1]))
                    sums, begun = Sums(), time.perf_counter()
                now, stop = time.monotonic(), session.stop_requested()
                # Clocks differ: several processes save only where all of them look anyway.
                may_save = must_look or not distributed.is_joined()
                if ends_row or stop or (may_save and now - saved >= 60 * session.save_minutes):
                    look()
                    if manager is not None:
                        so_far = Progress(tuple(rows), sums, time.perf_counter() - begun)
                        checkpoints.save(manager, step, state, so_far, run=stage.run)
                    saved = now
                if stop:
                    raise Preempted
        except Diverged as error:
            raise _failure(stage, images, error) from error
    return jax.device_put(jax.device_get(state.variables)), rows


def _row(stage: Stage, state: TrainState, sums: Sums, begun: float) -> Row:
    step = int(state.step)
    return {
        "epoch": -(-step // stage.row_steps),
        "step": step,
        "learning_rate": float(stage.learning_rate(step - 1)),
        "train_loss": sums.loss / sums.num_steps,
        "train_accuracy": sums.num_correct / sums.num_examples,
        **stage.measure(state),
        "seconds": round(time.perf_counter() - begun, 3),
    }


# -- What is read and written, by the leader -----------------------------------------------------


def _restore(
    stage: Stage, state: TrainState, manager: ocp.CheckpointManager | None, session: Session
) -> tuple[TrainState, Progress]:
    """Returns state and progress of the last intact checkpoint; if there is none, of the start."""
    last_state, last_progress = state, Progress()
    if manager is not None:
        there = checkpoints.restore_last(manager, state, run=stage.run, say=session.warn)
        if there is not None:
            last_state, last_progress = there
        elif (stage.folder / stage.table).exists():
            session.warn(
                "no checkpoint was complete yet: the training begins again with its first epoch"
            )
    state = distributed.arrays_from_leader(lambda: last_state, like=state)
    return state, Progress.of(distributed.from_leader(lambda: last_progress))


@contextlib.contextmanager
def _recorder(
    stage: Stage, rows: list[Row], session: Session
) -> Iterator[Callable[[list[Row], TrainState], None]]:
    """Brings what people read up to date; yields what does so after each further row."""
    if not distributed.is_leader():
        yield lambda rows, state: None
        return
    table = stage.folder / stage.table
    if rows:
        # What people read follows what is verified.
        run_folder.write_table(table, rows)
    after_row = stage.follow(len(rows))
    with tensorboard.events(table, rows, by="step", wanted=session.tensorboard) as add:

        def record(rows: list[Row], state: TrainState) -> None:
            run_folder.write_table(table, rows)
            add(rows[-1])
            after_row(len(rows), state.params)

        yield record


# -- A loss that is not finite -------------------------------------------------------------------


def _failure(stage: Stage, images: Inputs, error: Diverged) -> RunFailed:
    """Saves the state before the step that failed, and its batch; says what to do."""
    # From the last state that was checked.
    state, start, (order_key, key) = error.state, int(error.state.step), stage.keys
    batches = inputs.train_batches(images, order_key, start=start)
    for _ in range(start, error.step - 1):
        state, _ = stage.train_step(key, state, *next(batches))
    state, batch = distributed.local(state), distributed.gathered(next(batches))
    epoch = -(-error.step // images.steps_per_epoch)
    about = {"error": str(error), "stage": stage.name, "epoch": epoch, "step": error.step}
    # The others wait for it: who fails first ends all.
    place = distributed.from_leader(
        lambda: failures.save(stage.folder, about, key, state=state, batch=batch)
    )
    return RunFailed(
        f"{stage.name.lower()}: {error} (epoch {epoch}): "
        f"{failures.describe_weights(state.params)}. Try {stage.advice}, or --resume --debug-nans "
        f"to find the operation; state and batch before that step are in {place}"
    )
