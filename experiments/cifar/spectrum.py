"""The spectrum of the NTK of a pruned network, before training and after each epoch.

The kernel is the exact one, of all logits of a few images of each class with respect to the weights
that were kept; the weights are those at hand (nothing is redrawn), and normalisation uses the
statistics of the same images, held constant. NTK-SAP (Wang, Li, Sun, ICLR 2023, figure 2) shows its
eigenvalues at initialisation for 100 images of CIFAR-10: 1000 eigenvalues.

spectrum.csv has a row an epoch, 0 before training: `epoch`, `kernel_distance` to epoch 0, and
`eigenvalue_0`, `eigenvalue_1`, ... in descending order.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from experiments import data
from experiments.cifar.config import Config
from experiments.cifar.job import Job
from experiments.shell.errors import UserError
from experiments.storage import run_folder
from experiments.storage.run_folder import DISTANCE, EIGENVALUE, EPOCH
from ntksap_jax import ntk
from ntksap_jax.types import Mask, Params

IMAGES = 0x5BEC
"""Folded into the key of the seed for the choice of images, which no other draw is to depend on."""


def follow(
    config: Config, job: Job, params: Params, mask: Mask, folder: Path, done: int
) -> Callable[[int, Params], None]:
    """Measures before training, and returns what is to be called after each epoch.

    Of an interrupted run the kernel before training is computed again, by the same program from the
    same weights, and the rows of complete epochs are kept: the table becomes that of an undisturbed
    run. `params` are the weights before training, `done` the epochs that were trained before.

    Raises:
        UserError: spectrum.csv lacks rows of epochs that are done, or a class lacks images.
    """
    if not config.spectrum_samples:
        return lambda epoch, params: None

    path = folder / "spectrum.csv"
    rows = run_folder.read_table(path)[: done + 1]
    if done and len(rows) <= done:
        raise UserError(
            f"{path} holds {len(rows)} of the {done + 1} rows up to epoch {done}. Restore it, or "
            "delete the run folder and train again"
        )
    if done == config.training.epochs:
        return lambda epoch, params: None

    key = jax.random.fold_in(jax.random.key(config.seed), IMAGES)
    inputs, _ = data.pruning_batch(job.images.dataset, key, config.spectrum_samples)
    first = ntk.pruned_kernel(job.network, params, mask, inputs)

    def record(epoch: int, theta: np.ndarray) -> None:
        values = {f"{EIGENVALUE}{i}": float(x) for i, x in enumerate(ntk.eigenvalues(theta))}
        rows.append({EPOCH: epoch, DISTANCE: ntk.kernel_distance(first, theta), **values})
        run_folder.write_table(path, rows)

    if not done:
        rows.clear()
        record(0, first)
    return lambda epoch, params: record(epoch, ntk.pruned_kernel(job.network, params, mask, inputs))
