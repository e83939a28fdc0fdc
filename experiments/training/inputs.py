"""The images of a run, and how they come to the devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import data
from experiments.processes import distributed
from experiments.shell.errors import UserError
from experiments.training.config import RunConfig
from experiments.training.steps import EvalStep, Score, TrainState

EVAL_BATCH_SIZE = 500


class Inputs(NamedTuple):
    """A data set, in memory or streamed, and the devices that its batches are split over."""

    dataset: data.Dataset | data.StreamedDataset  # From `data.load`.
    batch_size: int  # Images a step, over all devices.
    mesh: jax.sharding.Mesh  # All devices.
    # `augment(key, images) -> inputs`, for training.
    augment: Callable[[jax.Array, jax.Array], jax.Array]
    normalise: Callable[[jax.Array], jax.Array]  # `normalise(images) -> inputs`, for evaluation.
    steps_per_epoch: int  # Full batches of the training set.


def load(config: RunConfig, batch_size: int, *, augmented: bool = True) -> Inputs:
    """Loads the data set that a configuration names; see `make`."""
    dataset = data.load(
        config.dataset,
        data_dir=config.data_dir,
        image_size=config.image_size,
        num_workers=config.data_workers,
    )
    return make(dataset, batch_size, augmented=augmented)


def make(
    dataset: data.Dataset | data.StreamedDataset, batch_size: int, *, augmented: bool = True
) -> Inputs:
    """Makes what a run trains on, `augmented` by the crops and flips that the data set has.

    Raises:
        UserError: the batch size or the augmentation does not go with the images or the devices.
    """
    mesh = distributed.data_mesh()
    if isinstance(dataset, data.StreamedDataset) and not augmented:
        raise UserError(
            f"--no-augment: the random crops of {dataset.name} are part of how it is read"
        )
    if batch_size > dataset.num_train:
        raise UserError(
            f"--batch-size: {batch_size} is more than the {dataset.num_train} training images"
        )
    if batch_size % mesh.size:
        raise UserError(f"--batch-size: {batch_size} cannot be split over {mesh.size} devices")
    scaling: dict[str, Any] = {"mean": dataset.mean, "std": dataset.std}
    return Inputs(
        dataset=dataset,
        batch_size=batch_size,
        mesh=mesh,
        augment=functools.partial(
            data.augment,
            crop_padding=dataset.crop_padding if augmented else 0,
            flip=dataset.flip and augmented,
            **scaling,
        ),
        normalise=functools.partial(data.normalise, **scaling),
        steps_per_epoch=dataset.num_train // batch_size,
    )


def train_batches(inputs: Inputs, key: jax.Array, *, start: int) -> Iterator[tuple[Any, Any]]:
    """Yields images and labels on the devices, epoch after epoch without end.

    The key decides the order (and what is augmented on the way, in a streamed data set); `start`
    steps were taken before.
    """
    before, first = divmod(start, inputs.steps_per_epoch)
    while True:
        before += 1  # Epochs count from 1.
        batches = inputs.dataset.train_batches(
            key, before, inputs.batch_size, start=first, part=distributed.part()
        )
        for batch in batches:
            yield distributed.shard_batch(batch, inputs.mesh)
        first = 0


def test_columns(inputs: Inputs, state: TrainState, *, eval_step: EvalStep) -> dict[str, float]:
    """Returns what `evaluate` finds as columns of metrics.csv."""
    score = evaluate(inputs, state, eval_step=eval_step)
    return {"test_loss": score.loss, "test_accuracy": score.accuracy}


def evaluate(inputs: Inputs, state: TrainState, *, eval_step: EvalStep) -> Score:
    """Measures loss and accuracy on the test set; all processes take part.

    The state is on all devices; the step is from `steps.make_eval_step`.
    """
    size = -(-EVAL_BATCH_SIZE // inputs.mesh.size) * inputs.mesh.size
    batches = inputs.dataset.test_batches(size, part=distributed.part())
    totals = [eval_step(state, *distributed.shard_batch(batch, inputs.mesh)) for batch in batches]
    sums = jax.tree.map(lambda *parts: float(np.sum(parts)), *jax.device_get(totals))
    return Score(sums.loss / sums.num_examples, sums.num_correct / sums.num_examples)
