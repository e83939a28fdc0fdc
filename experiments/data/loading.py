"""`load`: a data set by name, as arrays in memory or streamed from its files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.data import cache, catalogue, digits, image_folders, prepared, progress
from experiments.data.batching import epoch_batches, eval_batches, rows_of
from experiments.data.catalogue import Spec, StreamedSpec
from experiments.data.crops import CentreCrop, RandomCrop
from experiments.data.records import Records
from experiments.data.resizing import average_down
from experiments.data.streaming import EncodedImages, StreamedDataset
from experiments.shell.errors import DataError

CACHE_FORMAT = 1
"""Part of the name of a cached file; to be raised when decoding changes."""

JPEG_NOTE = "images stored as JPEG: not the original lossless pixels"


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
        _, height, width, channels = self.train_images.shape
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


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    num_workers: int = 0,
) -> Dataset | StreamedDataset:
    """Loads a data set; never from the network.

    The first time, the images of a prepared folder are decoded and cached beside it, or in the
    user's cache folder if it is read-only. Tiny-ImageNet and ImageNet are decoded batch by batch.

    Args:
        name: one of `NAMES`.
        data_dir: folder of prepared data; by default TFDS_DATA_DIR, else ~/tensorflow_datasets.
            The embedded `digits` need none.
        image_size: pixels a side. Images in memory are averaged down to it, and their crop padding
            scaled and rounded; of streamed ones it is the size of the crops.
        num_workers: processes that decode what is streamed; 0 for a thread of this one.

    Raises:
        UserError: an unknown name, or a size that images in memory cannot be averaged down to.
        DataError: the data set is not there, or its folder is damaged.
    """
    if name in catalogue.STREAMED:
        return load_streamed(
            catalogue.STREAMED[name],
            prepared.data_root(data_dir),
            image_size=image_size,
            num_workers=num_workers,
        )
    spec = catalogue.find(name)
    dataset = _load_digits(spec) if spec.source is None else load_prepared(spec, data_dir=data_dir)
    return dataset if image_size is None else _shrink(dataset, image_size)


def _shrink(dataset: Dataset, size: int) -> Dataset:
    return dataset._replace(
        train_images=average_down(dataset.train_images, size),
        test_images=average_down(dataset.test_images, size),
        crop_padding=round(dataset.crop_padding * size / dataset.image_shape[0]),
    )


def load_streamed(
    spec: StreamedSpec, root: Path, *, image_size: int | None, num_workers: int
) -> StreamedDataset:
    """Finds the images of a data set that is streamed; see `load`."""
    folder, records = find_streamed(spec, root), catalogue.IMAGENET_RECORDS
    train: EncodedImages
    test: EncodedImages
    if folder is None:
        raise DataError(f"{root / FOLDERS[spec.name]} is not there. {_ADVICE[spec.name]}")
    if folder.name == FOLDERS[spec.name]:
        read = {"tiny_imagenet": image_folders.tiny_imagenet, "imagenet": image_folders.imagenet}
        train, test, class_names, fingerprint = read[spec.name](folder)
        source = f"image files, SHA-256 of their names and labels {fingerprint}"
    else:
        place = prepared.locate(records, root)
        train, test = (Records(records, place, split) for split in records.splits)
        class_names = prepared.label_names(records, place.folder)
        source = f"TFDS {records.name} {records.version}"
    size = image_size or spec.image_size
    return StreamedDataset(
        name=spec.name,
        train=train,
        test=test,
        class_names=class_names,
        mean=spec.mean,
        std=spec.std,
        train_crop=RandomCrop(size, spec.crop_scale, spec.crop_ratio),
        test_crop=CentreCrop(size, round(size * spec.shorter_side / spec.image_size)),
        num_workers=num_workers,
        source=source,
    )


def find_streamed(spec: StreamedSpec, root: Path) -> Path | None:
    """Returns the folder of a data set that is streamed, if there is one; it is not looked into."""
    names = [FOLDERS[spec.name]]
    if spec is catalogue.IMAGENET:
        names.append(catalogue.IMAGENET_RECORDS.name)
    return next((root / name for name in names if (root / name).is_dir()), None)


FOLDERS = {"tiny_imagenet": "tiny-imagenet-200", "imagenet": "imagenet"}
"""Where the image files of a data set are, in the folder of all data."""

_ADVICE = {
    "tiny_imagenet": "Unpack tiny-imagenet-200.zip there, or name the folder that holds "
    "tiny-imagenet-200 by --data-dir or TFDS_DATA_DIR",
    "imagenet": "Put or link the folders train/<class> and val/<class> of ImageNet there, or "
    "prepare imagenet2012 by TFDS in array_record format beside it; --data-dir or TFDS_DATA_DIR "
    "names the folder around it",
}


def load_prepared(spec: Spec, *, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Loads the data set that `spec` describes from the folder that TFDS prepared; see `load`."""
    place = prepared.locate(spec, prepared.data_root(data_dir))
    fingerprint = cache.fingerprint(place.files)
    arrays = cache.get(
        f"{spec.name}-{spec.version}-{CACHE_FORMAT}-{fingerprint[:16]}",
        cache.folders(place.folder.parent),
        lambda: _decode(spec, place),
        expected={"train_images", "train_labels", "test_images", "test_labels", "num_jpeg"},
    )
    return Dataset(
        name=spec.name,
        train_images=arrays["train_images"],
        train_labels=arrays["train_labels"],
        test_images=arrays["test_images"],
        test_labels=arrays["test_labels"],
        class_names=prepared.label_names(spec, place.folder),
        mean=spec.mean,
        std=spec.std,
        crop_padding=spec.crop_padding,
        flip=spec.flip,
        source=f"TFDS {spec.name} {spec.version}, SHA-256 {fingerprint}",
        note=JPEG_NOTE if arrays["num_jpeg"] else "",
    )


def _decode(spec: Spec, place: prepared.Prepared) -> cache.Arrays:
    with progress.count_bar() as bar:
        task = bar.add_task(f"decoding {spec.name}", total=spec.num_train + spec.num_test)
        train, test = (
            prepared.read_split(
                spec, place, split, on_images=lambda count: bar.advance(task, count)
            )
            for split in spec.splits
        )
    return {
        "train_images": train.images,
        "train_labels": train.labels,
        "test_images": test.images,
        "test_labels": test.labels,
        "num_jpeg": np.asarray(train.num_jpeg + test.num_jpeg),
    }


def _load_digits(spec: Spec) -> Dataset:
    (train_images, train_labels), (test_images, test_labels) = digits.read()
    return Dataset(
        name=spec.name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=tuple(map(str, range(spec.num_classes))),
        mean=spec.mean,
        std=spec.std,
        crop_padding=spec.crop_padding,
        flip=spec.flip,
        source="scikit-learn's load_digits; every fifth image of a class is a test image",
        note="",
    )
