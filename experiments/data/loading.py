"""`load`: a data set by name, as arrays in memory."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np

from experiments.data import cache, catalogue, digits, prepared, progress
from experiments.data.catalogue import Spec

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


def load(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Loads a data set; never from the network.

    The first time, the images of a prepared folder are decoded and cached beside it, or in the
    user's cache folder if it is read-only.

    Args:
        name: one of `NAMES`.
        data_dir: folder of prepared data; by default TFDS_DATA_DIR, else ~/tensorflow_datasets.
            The embedded `digits` need none.

    Raises:
        UserError: an unknown name.
        DataError: the data set is not prepared there, or the folder is damaged.
    """
    spec = catalogue.find(name)
    if spec.source is None:
        return _load_digits(spec)
    return load_prepared(spec, data_dir=data_dir)


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
            for split in prepared.SPLITS
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
