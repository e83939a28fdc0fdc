"""Data sets that fit into memory, and scikit-learn's digits as one."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.data.augmentation import resize
from experiments.data.batching import epoch_batches, eval_batches, rows_of

TEST_EVERY = 5
"""Every fifth image of a class of the digits is a test image."""


class Dataset(NamedTuple):
    """A data set in memory.

    Attributes:
        name: as in the catalogue.
        train_images: uint8, (N, height, width, channels).
        train_labels: int32, (N,).
        test_images: as `train_images`.
        test_labels: as `train_labels`.
        class_names: one a class.
        mean: per channel, of pixels scaled to [0, 1].
        std: likewise.
        crop_padding: for `augment`.
        flip: for `augment`.
        source: where the images come from, with version and fingerprint, for the record of a run.
        note: what a reader of results must know about these images; often empty.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    source: str
    note: str

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return len(self.train_labels)

    @property
    def num_test(self) -> int:
        """Number of test images."""
        return len(self.test_labels)

    @property
    def augmentation(self) -> str:
        """The augmentation, in words."""
        parts = [f"random crop with padding {self.crop_padding}"] if self.crop_padding else []
        parts += ["random flip"] if self.flip else []
        return ", ".join(parts) or "none"

    def train_images_at(self, indices: np.ndarray) -> np.ndarray:
        """Returns some training images without augmentation, uint8."""
        return self.train_images[indices]

    def train_batches(
        self,
        key: jax.Array,
        epoch: int,
        batch_size: int,
        *,
        start: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields uint8 images and int32 labels of one epoch, shuffled, not yet augmented.

        The last images of the shuffled order that do not fill a batch are left out.

        Args:
            key: PRNG key of the whole training.
            epoch: its number.
            batch_size: images a batch.
            start: batches to leave out at the beginning, for a training that resumes behind them.
            part: which part of each batch, and of how many; see `batching.rows_of`.
        """
        order = epoch_batches(jax.random.fold_in(key, epoch), self.num_train, batch_size)
        order = order[start:, rows_of(part, batch_size)]
        return ((self.train_images[batch], self.train_labels[batch]) for batch in order)

    def test_batches(
        self, batch_size: int, *, part: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields uint8 images, int32 labels and `is_real` that cover the test set once."""
        rows = rows_of(part, batch_size)
        indices, is_real = (each[:, rows] for each in eval_batches(self.num_test, batch_size))
        return (
            (self.test_images[batch], self.test_labels[batch], real)
            for batch, real in zip(indices, is_real, strict=True)
        )


def resized(dataset: Dataset, size: int) -> Dataset:
    """Returns a data set with images of another size; see `augmentation.resize`.

    The padding of random crops shrinks with the images, and does not grow with them.
    """
    side, _, _ = dataset.image_shape
    note = f"interpolated to {size}x{size}" if size > side else ""
    return dataset._replace(
        train_images=resize(dataset.train_images, size),
        test_images=resize(dataset.test_images, size),
        crop_padding=round(dataset.crop_padding * min(1, size / side)),
        note="; ".join(filter(None, (dataset.note, note))),
    )


def read_digits() -> dict[str, np.ndarray]:
    """Returns the arrays of a `Dataset`: the 1797 handwritten digits inside scikit-learn's package.

    The split draws nothing at random, so that no version of anything can change it. The original
    grey levels 0 to 16 are stretched to 0 to 255.
    """
    package = importlib.util.find_spec("sklearn")  # To import it would take seconds.
    assert package is not None and package.origin is not None
    table = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    images = np.rint(table[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    labels = table[:, -1].astype(np.int32)
    is_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        is_test[np.flatnonzero(labels == label)[::TEST_EVERY]] = True
    return {
        "train_images": images[~is_test],
        "train_labels": labels[~is_test],
        "test_images": images[is_test],
        "test_labels": labels[is_test],
    }
