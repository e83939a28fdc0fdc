"""Checkpoints of the training with Orbax: in the background, the last two kept, each verified.

A checkpoint holds the state after a step, and a record with the run that it is of, the SHA-256 of
the state, and what the training came to so far. It is there as a whole or not at all, also after a
crash. One that is damaged, or of another run, is put aside, and the one before it used.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.processes import distributed
from experiments.shell.errors import UserError
from experiments.storage import files
from experiments.storage.run_folder import Row
from experiments.training.steps import TrainState
from ntksap_jax import masks

KEEP = 2


class Sums(NamedTuple):
    """Sums over the steps of a row that is not complete yet, in their order."""

    loss: float = 0.0
    num_correct: int = 0
    num_examples: int = 0
    num_steps: int = 0


class Progress(NamedTuple):
    """What a training came to, besides its state."""

    rows: tuple[Row, ...] = ()  # Of its table, those that are complete.
    sums: Sums = Sums()  # Of the row that is going on.
    seconds: float = 0.0  # That this row took so far.

    @classmethod
    def of(cls, values: Any) -> Progress:
        """Returns it again from what JSON made of it."""
        rows, sums, seconds = values
        return cls(tuple(rows), Sums(*sums), seconds)


class Damaged(Exception):
    """A checkpoint that cannot be used; says why."""


@contextlib.contextmanager
def open_manager(folder: Path, *, read_only: bool = False) -> Iterator[ocp.CheckpointManager]:
    """Opens (and makes) the checkpoint folder; with several processes, only for the leader.

    Leaving the context waits for what is being written, and raises what went wrong with it.

    Args:
        folder: holds the checkpoints.
        read_only: nothing is made, removed or cleaned up: the folder is another run's.
    """
    _silence()
    if not read_only:
        folder.mkdir(parents=True, exist_ok=True)
    # The other processes do not come here, and Orbax must not wait for them.
    alone = {distributed.LEADER} if distributed.is_joined() else None
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(KEEP),
        enable_async_checkpointing=True,
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        create=False,
        multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes=alone),
    )
    with _Manager(folder.absolute(), options=options, item_names=("state", "record")) as manager:
        yield manager


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Leaves preemption to `distributed`; Orbax would ask JAX too, and miscount its calls."""
        return False


@functools.cache
def _silence() -> None:
    """Keeps Orbax from printing, with tracebacks, what it raises.

    It logs it; its tasks complain that nobody asked for the others' errors; and its threads, now or
    when the program ends, that the event loop which waited for them is closed.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def save(
    manager: ocp.CheckpointManager, step: int, state: TrainState, progress: Progress, *, run: str
) -> None:
    """Begins to write the state after `step` steps of a run; first waits for the save before.

    `run` identifies what is computed, see `run_folder.identity`.
    """
    if distributed.is_joined():
        # Orbax writes arrays of devices only if all processes take part.
        state = jax.device_get(state)
    value = {"run": run, "step": step, "state": digest(state), "progress": progress}
    saved = manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(files.seal(value))
        ),
    )
    if not saved:
        raise RuntimeError(f"step {step} was not saved: {manager.directory} holds a later one")


def restore_last(
    manager: ocp.CheckpointManager, like: TrainState, *, run: str, say: Callable[[str], None]
) -> tuple[TrainState, Progress] | None:
    """Reads the last checkpoint that is intact; nothing if there was never one.

    Args:
        manager: from `open_manager`.
        like: a state of the same shapes; the result gets its placement on devices, so that a
            checkpoint can be read with another number of devices than it was written with.
        run: identifies what is computed, see `run_folder.identity`.
        say: is told which checkpoints are lost, if any.

    Raises:
        UserError: there are checkpoints, and none is intact.
    """
    folder = Path(manager.directory)
    lost: dict[int, str] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            restored = restore(manager, step, like, run=run)
        except Damaged as error:
            lost[step] = f"step {step}: {error}"
            continue
        if lost:
            # Out of the way, or Orbax would save nothing before their steps are past.
            aside = folder.parent / "damaged"
            aside.mkdir(exist_ok=True)
            for each in lost:
                shutil.rmtree(aside / f"checkpoint-{each}", ignore_errors=True)
                os.replace(folder / str(each), aside / f"checkpoint-{each}")
            manager.reload()
            say(
                f"the training goes on from step {step}; damaged checkpoints, now in {aside}: "
                f"{'; '.join(lost.values())}"
            )
        return restored
    if lost:
        raise UserError(
            f"no checkpoint in {folder} can be read ({'; '.join(lost.values())}). Restore one, or "
            f"delete {folder} to train again from the start with the same mask, then use --resume"
        )
    return None


def restore(
    manager: ocp.CheckpointManager, step: int, like: TrainState, *, run: str
) -> tuple[TrainState, Progress]:
    """Reads the checkpoint after `step` steps; see `restore_last`.

    Raises:
        Damaged: a checkpoint that cannot be read, holds other than was saved, or is of another run.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
        restored = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))
        record = files.unseal(restored.record)
        if (record["run"], record["step"]) != (run, step):
            raise ValueError("it is of another run")
        progress = Progress.of(record["progress"])
        restored = manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )
    except Exception as error:  # Orbax documents no common base class for what it raises here.
        reason = str(error).strip().split("\n")[0][:200]
        raise Damaged(f"{type(error).__name__}: {reason}") from error
    if digest(restored.state) != record["state"]:
        raise Damaged("its arrays are not those whose SHA-256 was recorded")
    return restored.state, progress


def digest(state: Any) -> str:
    """Returns the SHA-256 of the paths, types, shapes and bytes of a pytree of arrays."""
    sha = hashlib.sha256()
    for path, array in sorted(masks.leaf_paths(jax.device_get(state)).items()):
        sha.update(f"{path} {array.dtype} {array.shape}".encode())
        sha.update(np.asarray(array).tobytes())
    return sha.hexdigest()
