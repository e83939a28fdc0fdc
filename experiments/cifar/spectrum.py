"""The spectrum of the NTK of a pruned network, before training and after each epoch.

The kernel is the exact one, of all logits of a few images of each class with respect to the weights
that were kept; the weights are those at hand (nothing is redrawn), and normalisation uses the
statistics of the same images, held constant. NTK-SAP (Wang, Li, Sun, ICLR 2023, figure 2) shows its
eigenvalues at initialisation for 100 images of CIFAR-10: 1000 eigenvalues.

spectrum.csv has a row an epoch, 0 before training: `epoch`, `kernel_distance` to epoch 0, and
`eigenvalue_0`, `eigenvalue_1`, ... in descending order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data
from experiments.cifar.config import Config
from experiments.cifar.job import Job
from experiments.shell.errors import UserError
from experiments.storage import run_folder
from ntksap_jax import masks
from ntksap_jax.types import Mask, Network, Params

MAX_EIGENVALUES = 4000
"""More take minutes an epoch for the eigenvalues alone."""

MAX_BYTES = 3 * 2**30
"""Memory for the rows of the Jacobian: all of them, or two blocks at a time."""

COLUMNS = 2**15
"""Columns of the Jacobian that are multiplied at a time."""

IMAGES = 0x5BEC
"""Folded into the key of the seed for the choice of images, which no other draw is to depend on."""

EPOCH, DISTANCE, EIGENVALUE = "epoch", "kernel_distance", "eigenvalue_"
"""Columns of spectrum.csv; each eigenvalue's ends in its index."""


# -- One kernel ----------------------------------------------------------------------------------


def kernel(
    network: Network, params: Params, mask: Mask, inputs: Any, *, max_bytes: int = MAX_BYTES
) -> np.ndarray:
    """Computes Θ(m) = J diag(m) Jᵀ for the Jacobian J of the outputs at θ⊙m.

    An output depends on its own image only, as batch statistics are constants. So the rows of J
    come image by image, at the cost of one backward pass of one image each, without the columns of
    pruned weights. If they do not fit into memory together, they are made again block by block.

    Args:
        network: must give one vector of outputs for an image.
        params: the weights θ; need not be masked yet.
        mask: what was kept.
        inputs: images as the network takes them, (N, ...).
        max_bytes: memory for rows of J.

    Returns:
        float32, (N * outputs, N * outputs): image by image, output by output.
    """
    # On one device, wherever they are: the work is too small to be spread.
    params, mask, inputs = jax.tree.map(jnp.asarray, jax.device_get((params, mask, inputs)))
    kept = {path: np.flatnonzero(leaf) for path, leaf in masks.leaf_paths(mask).items()}
    row_bytes = 4 * sum(map(len, kept.values()))
    outputs = jax.eval_shape(network.apply, params, inputs[:1]).size
    num_rows = len(inputs) * outputs
    num_blocks = 1
    if num_rows * row_bytes > max_bytes:
        num_blocks = min(len(inputs), -(-2 * num_rows * row_bytes // max_bytes))

    def rows(images: np.ndarray) -> np.ndarray:
        found = np.empty((len(images) * outputs, row_bytes // 4), np.float32)
        for i, index in enumerate(images):
            of_image = masks.leaf_paths(_jacobian(params, mask, inputs, index, network=network))
            place = found[i * outputs : (i + 1) * outputs]
            np.concatenate(
                [np.asarray(of_image[path])[:, columns] for path, columns in kept.items()],
                axis=1,
                out=place,
            )
        return found

    blocks = np.array_split(np.arange(len(inputs)), num_blocks)
    theta = np.empty((num_rows, num_rows), np.float32)
    for number, images in enumerate(blocks):
        mine, ours = rows(images), _slice(images, outputs)
        theta[ours, ours] = _products(mine, mine)
        for others in blocks[:number]:
            theirs = _slice(others, outputs)
            theta[ours, theirs] = _products(mine, rows(others))
            theta[theirs, ours] = theta[ours, theirs].T
    return theta


def _slice(images: np.ndarray, outputs: int) -> slice:
    return slice(images[0] * outputs, (images[-1] + 1) * outputs)


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns a bᵀ, by some columns at a time: the device gets copies of no more."""
    parts = (slice(start, start + COLUMNS) for start in range(0, a.shape[1], COLUMNS))
    products = (np.asarray(_product(a[:, part], b[:, part])) for part in parts)
    return sum(products, np.zeros((len(a), len(b)), np.float32))


@jax.jit
def _product(a: Any, b: Any) -> jax.Array:
    return jnp.matmul(a, b.T, precision="highest")


@functools.partial(jax.jit, static_argnames="network")
def _jacobian(params: Params, mask: Mask, inputs: Any, index: Any, *, network: Network) -> Any:
    """Returns the outputs x weights Jacobian of one image, a matrix for each prunable leaf.

    One image at a time: with several, each has a kernel gradient of its own, which XLA computes by
    grouped convolutions (three times slower on CPU). The mask is an argument, so that all criteria
    share one compilation.
    """
    with jax.default_matmul_precision("highest"):
        apply = network.calibrate(masks.apply(mask, params), inputs)

        def outputs(weights: Any) -> jax.Array:
            merged = masks.apply(mask, masks.merge(weights, params))
            return apply(merged, inputs[index][None]).ravel()

        weights = masks.map_prunable(lambda keep, p: p, mask, params)
        jacobian = jax.jacrev(outputs)(weights)
        return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], -1), jacobian)


def eigenvalues(theta: np.ndarray) -> np.ndarray:
    """Returns the eigenvalues in descending order.

    In float64: the smallest are a millionth of the largest, which a float32 solver blurs.
    """
    return np.linalg.eigvalsh(theta.astype(np.float64))[::-1]


def kernel_distance(theta: np.ndarray, other: np.ndarray) -> float:
    """Returns 1 - ⟨Θ, Θ'⟩ / (‖Θ‖ ‖Θ'‖), from 0 (equal up to a factor) to 1.

    Source: Fort et al., *Deep learning versus kernel learning*, NeurIPS 2020. NaN if a kernel is 0,
    that of a network whose outputs depend on no weight.
    """
    a, b = (np.asarray(each, np.float64).ravel() for each in (theta, other))
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return max(0.0, float(1 - a @ b / norms)) if norms else float("nan")


# -- Along the training --------------------------------------------------------------------------


def check(config: Config, job: Job) -> None:
    """Raises a `UserError` if the spectrum that is asked for is too large."""
    num_classes = job.images.dataset.num_classes
    wanted = config.spectrum_samples * num_classes**2
    if wanted > MAX_EIGENVALUES:
        raise UserError(
            f"--spectrum-samples: {config.spectrum_samples} images of each of {num_classes} "
            f"classes with as many outputs give {wanted} eigenvalues, expected at most "
            f"{MAX_EIGENVALUES}: at most {MAX_EIGENVALUES // num_classes**2} images a class here"
        )


def follow(
    config: Config, job: Job, params: Params, mask: Mask, folder: Path, done: int
) -> Callable[[int, Params], None]:
    """Measures before training, and returns what is to be called after each epoch.

    Of an interrupted run the kernel before training is computed again, by the same program from the
    same weights, and the rows of complete epochs are kept: the table becomes that of an undisturbed
    run.

    Args:
        config: of the run; without `spectrum_samples` nothing is measured.
        job: data and network.
        params: the weights before training.
        mask: what was kept.
        folder: the run folder, where spectrum.csv goes.
        done: epochs that were trained before.

    Returns:
        `after_epoch(epoch, params)`, which appends a row to spectrum.csv.

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
    first = kernel(job.network, params, mask, inputs)

    def record(epoch: int, theta: np.ndarray) -> None:
        values = {f"{EIGENVALUE}{i}": float(x) for i, x in enumerate(eigenvalues(theta))}
        rows.append({EPOCH: epoch, DISTANCE: kernel_distance(first, theta), **values})
        run_folder.write_table(path, rows)

    if not done:
        rows.clear()
        record(0, first)
    return lambda epoch, params: record(epoch, kernel(job.network, params, mask, inputs))
