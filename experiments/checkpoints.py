"""Checkpoints of the training state with Orbax: one an epoch, the last two kept."""

from __future__ import annotations

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from experiments.command_line import UserError
from experiments.training import TrainState

KEEP = 2


def open_manager(folder: Path) -> ocp.CheckpointManager:
    """Opens (and makes) the checkpoint folder; use the manager as a context.

    Saving waits until the files are there and renamed into place, so that an epoch that is reported
    as done is on disk.
    """
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(KEEP),
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)


def save(manager: ocp.CheckpointManager, epoch: int, state: TrainState) -> None:
    """Writes the state after `epoch` epochs."""
    manager.save(epoch, args=ocp.args.StandardSave(state))


def restore(manager: ocp.CheckpointManager, epoch: int, like: TrainState) -> TrainState:
    """Reads the state after `epoch` epochs.

    Args:
        manager: from `open_manager`.
        epoch: one of `manager.all_steps()`.
        like: a state of the same shapes; the result gets its placement on devices, so that a
            checkpoint can be read with another number of devices than it was written with.

    Raises:
        UserError: a checkpoint that cannot be read, or one of another network.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
        return manager.restore(epoch, args=ocp.args.StandardRestore(abstract))
    except Exception as error:  # Orbax documents no common base class for what it raises here.
        folder = Path(manager.directory) / str(epoch)
        earlier = [step for step in manager.all_steps() if step < epoch]
        advice = (
            f"delete that folder to go on from epoch {max(earlier)}"
            if earlier
            else f"delete {folder.parent} to train again from the start with the same mask"
        )
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"the checkpoint {folder} is damaged or of another network "
            f"({type(error).__name__}: {reason}); {advice}, then use --resume again"
        ) from error
