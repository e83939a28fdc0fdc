"""`load`: a data set by name, as arrays in memory or streamed from its files."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import catalogue, image_folders, memory, prepared
from experiments.data.augmentation import normalise
from experiments.data.catalogue import Spec, StreamedSpec
from experiments.data.crops import CentreCrop, RandomCrop
from experiments.data.memory import Dataset
from experiments.data.streaming import EncodedImages, StreamedDataset
from experiments.shell.errors import DataError, UserError
from ntksap_jax import criteria

JPEG_NOTE = "images stored as JPEG: not the original lossless pixels"


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    num_workers: int = 0,
) -> Dataset | StreamedDataset:
    """Loads a data set; never from the network.

    The first time, the images of a prepared folder are decoded and kept in the user's cache.
    Tiny-ImageNet and ImageNet are decoded batch by batch.

    Args:
        name: one of `catalogue.NAMES`.
        data_dir: folder of prepared data; by default TFDS_DATA_DIR, else ~/tensorflow_datasets.
            The embedded `digits` need none.
        image_size: pixels a side. Images in memory are averaged down to it, with the padding of
            their crops, or interpolated; of streamed ones it is the size of the crops.
        num_workers: processes that decode what is streamed; 0 for a thread of this one.

    Raises:
        UserError: an unknown name, or a size that images in memory cannot be averaged down to.
        DataError: the data set is not there, or its folder is damaged.
    """
    root = prepared.data_root(data_dir)
    if name in catalogue.STREAMED:
        spec = catalogue.STREAMED[name]
        return _load_streamed(spec, root, image_size=image_size, num_workers=num_workers)
    dataset = load_arrays(catalogue.find(name), root)
    return dataset if image_size is None else memory.resized(dataset, image_size)


def load_arrays(spec: Spec, root: Path) -> Dataset:
    """Loads the data set that `spec` describes into memory; see `load`."""
    if not spec.version:
        arrays, note = memory.read_digits(), ""
        class_names = tuple(map(str, range(spec.num_classes)))
        source = "scikit-learn's load_digits; every fifth image of a class is a test image"
    else:
        folder = prepared.locate(spec, root)
        fingerprint = prepared.fingerprint(folder)
        arrays = prepared.cached(
            f"{spec.name}-{spec.version}-{prepared.CACHE_FORMAT}-{fingerprint[:16]}",
            lambda: _decode(spec, folder),
        )
        note = JPEG_NOTE if arrays.pop("num_jpeg") else ""
        class_names = prepared.label_names(spec, folder)
        source = f"TFDS {spec.name} {spec.version}, SHA-256 {fingerprint}"
    return Dataset(
        name=spec.name,
        **arrays,
        class_names=class_names,
        mean=spec.mean,
        std=spec.std,
        crop_padding=spec.crop_padding,
        flip=spec.flip,
        source=source,
        note=note,
    )


def _decode(spec: Spec, folder: Path) -> dict[str, np.ndarray]:
    train, test = (prepared.read_split(spec, folder, split) for split in spec.splits)
    return {
        "train_images": train[0],
        "train_labels": train[1],
        "test_images": test[0],
        "test_labels": test[1],
        "num_jpeg": np.asarray(train[2] + test[2]),
    }


def _load_streamed(
    spec: StreamedSpec, root: Path, *, image_size: int | None, num_workers: int
) -> StreamedDataset:
    folder, records = find_streamed(spec, root), catalogue.IMAGENET_RECORDS
    train: EncodedImages
    test: EncodedImages
    if folder is None:
        raise DataError(f"{root / spec.folder} is not there. {spec.advice}")
    if folder.name == spec.folder:
        read = image_folders.imagenet if spec.name == "imagenet" else image_folders.tiny_imagenet
        try:
            train, test, class_names, fingerprint = read(folder)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {folder} ({error}). {image_folders.RESTORE}") from error
        source = f"image files, SHA-256 of their names and labels {fingerprint}"
    else:
        place = prepared.locate(records, root)
        train, test = (prepared.Records(records, place, split) for split in records.splits)
        class_names = prepared.label_names(records, place)
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
    names = [spec.folder]
    if spec is catalogue.IMAGENET:
        names.append(catalogue.IMAGENET_RECORDS.name)
    return next((root / name for name in names if (root / name).is_dir()), None)


def pruning_batch(
    dataset: Dataset | StreamedDataset, key: jax.Array, per_class: int
) -> tuple[jax.Array, jax.Array]:
    """Draws training images, equally many of each class, without augmentation.

    Args:
        dataset: from `load`.
        key: PRNG key; it decides which.
        per_class: images of each class.

    Returns:
        Normalised float32 images (N, height, width, channels) and int32 labels (N,), in random
        order.

    Raises:
        UserError: a class has fewer images.
    """
    labels = dataset.train_labels
    try:
        indices = criteria.class_balanced(key, labels, per_class=per_class)
    except ValueError as error:
        raise UserError(f"cannot draw a subset of {dataset.name}: {error}") from error
    images = jnp.asarray(dataset.train_images_at(indices))
    return normalise(images, mean=dataset.mean, std=dataset.std), jnp.asarray(labels[indices])
