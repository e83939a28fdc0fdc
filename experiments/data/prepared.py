"""Folders that TFDS has prepared: where they are, what is wrong with them, and their images.

TFDS is called only after the folder has been checked: on a folder that is not there it would retry
the network for minutes, and then blame the wrong thing.
"""

from __future__ import annotations

import io
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.catalogue import Spec
from experiments.shell.errors import DataError
from experiments.storage import files

METADATA = ("dataset_info.json", "features.json", "label.labels.txt")
CHUNK = 1000
"""Records read at once: reading them one by one takes ten times longer."""


class Prepared(NamedTuple):
    """A folder that has passed the checks.

    Attributes:
        root: the folder of all data sets, TFDS's `data_dir`.
        folder: `root/name/version`.
        files: metadata and shards, everything that decides what is read.
    """

    root: Path
    folder: Path
    files: tuple[Path, ...]


class Split(NamedTuple):
    """Decoded images uint8 (N, H, W, C) and labels int32 (N,), and how many were JPEG."""

    images: np.ndarray
    labels: np.ndarray
    num_jpeg: int


def data_root(data_dir: str | os.PathLike[str] | None) -> Path:
    """Returns the folder of prepared data: the argument, TFDS_DATA_DIR or TFDS's default."""
    return Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or Path("~", "tensorflow_datasets")
    ).expanduser()


def locate(spec: Spec, root: Path) -> Prepared:
    """Finds and checks the prepared folder of a data set, without TFDS.

    Raises:
        DataError: it is missing, unreadable, of another version or format, or incomplete.
    """
    problem = find_problem(spec, root)
    folder = root / spec.name / spec.version
    if problem:
        command = f"python -m experiments.data prepare {spec.name}"
        if spec.source is None:
            advice = f"Prepare {spec.name} by TFDS again, with file_format='array_record'"
        elif folder.exists():
            advice = f"Move {folder} away and run `{command} --data-dir {shlex.quote(str(root))}`"
        else:
            size = sum(file.size for file in spec.source.files)
            advice = (
                f"Either run `{command} --data-dir {shlex.quote(str(root))}` "
                f"(downloads {size / 1e6:.0f} MB)"
            )
        raise DataError(
            f"{problem}. {advice}, or name an existing TFDS folder in array_record format by "
            "--data-dir or TFDS_DATA_DIR"
        )
    info = files.read_json(folder / "dataset_info.json")
    metadata = [folder / name for name in METADATA if (folder / name).exists()]
    return Prepared(root, folder, (*metadata, *_shards(spec, folder, info)))


def find_problem(spec: Spec, root: Path) -> str | None:
    """Returns one clause that says why the data set cannot be read from `root`, or None."""
    folder = root / spec.name / spec.version
    if not folder.is_dir():
        others = _versions(root / spec.name)
        if others:
            return f"{root / spec.name} holds version {', '.join(others)}, not {spec.version}"
        state = "" if root.is_dir() else ", which does not exist"
        return f"{spec.name} is not prepared in {root}{state} (looked for {folder})"
    try:
        info = files.read_json(folder / "dataset_info.json")
        declared = info["name"], info["version"]
        lengths = {split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]}
    except FileNotFoundError:
        return f"{folder} has no dataset_info.json: half-made, or no TFDS folder"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{folder / 'dataset_info.json'} is damaged ({type(error).__name__}: {error})"
    if declared != (spec.name, spec.version):
        return f"{folder} says that it holds {' '.join(declared)}, not {spec.name} {spec.version}"
    file_format = info.get("fileFormat", "tfrecord")
    if file_format != "array_record":
        return f"{folder} is in {file_format} format, unreadable without TensorFlow"
    for split, expected in zip(spec.splits, (spec.num_train, spec.num_test), strict=True):
        if lengths.get(split) != expected:
            return f"{folder} has {lengths.get(split, 'no')} {split} images, not {expected}"
    if not (folder / "features.json").is_file():
        return f"{folder} has no features.json: half-made"
    for shard in _shards(spec, folder, info):
        if not shard.is_file():
            return f"{shard} is missing"
        if not shard.stat().st_size:
            return f"{shard} is empty"
    return None


def label_names(spec: Spec, folder: Path) -> tuple[str, ...]:
    """Returns the class names of a checked folder; the numbers themselves if it has none."""
    path = folder / "label.labels.txt"
    names = files.read_text(path).split("\n") if path.exists() else []
    return tuple(filter(None, names)) or tuple(map(str, range(spec.num_classes)))


def read_split(
    spec: Spec, prepared: Prepared, split: str, *, on_images: Callable[[int], object]
) -> Split:
    """Reads and decodes all images of one split, in the order of the records.

    Pillow decodes, whatever else is installed: decoders differ in the pixels they make of a JPEG.

    Args:
        spec: the data set.
        prepared: from `locate`.
        split: one of `spec.splits`.
        on_images: called with the number of images just decoded.

    Raises:
        DataError: the records are damaged, or a package is missing.
    """
    records = open_records(spec, prepared, split)
    count = len(records)
    images = np.empty((count, *spec.image_shape), np.uint8)
    labels = np.empty(count, np.int32)
    num_jpeg = 0
    for start in range(0, count, CHUNK):
        rows = range(start, min(start + CHUNK, count))
        try:
            for row, record in zip(rows, records.__getitems__(list(rows)), strict=True):
                images[row] = _decode(record["image"], spec.image_shape)
                labels[row] = record["label"]
                num_jpeg += record["image"].startswith(b"\xff\xd8")
        # RuntimeError is array_record's, for a checksum that fails; the others come from decoding.
        except (RuntimeError, OSError, SyntaxError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{prepared.folder}: the {split} records {rows.start} to {rows.stop - 1} are "
                f"truncated or damaged ({error}). Move the folder away and prepare it again"
            ) from error
        on_images(len(rows))
    if count and not 0 <= labels.min() <= labels.max() < spec.num_classes:
        raise DataError(
            f"{prepared.folder}: {split} labels range from {labels.min()} to {labels.max()}, "
            f"expected 0 to {spec.num_classes - 1}"
        )
    return Split(images, labels, num_jpeg)


def open_records(spec: Spec, prepared: Prepared, split: str) -> Any:
    """Returns the records of a split by index: dictionaries with the image as its file's bytes.

    Raises:
        DataError: TFDS cannot read them, or is not installed.
    """
    try:
        import tensorflow_datasets as tfds

        # SkipDecoding hands out the stored bytes; TFDS's other way to get them needs TensorFlow.
        return tfds.data_source(
            f"{spec.name}:{spec.version}",
            split=split,
            data_dir=prepared.root,
            download=False,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
    except ImportError as error:
        raise DataError(
            f"{spec.name} needs a package that is not installed ({error}): "
            "pip install 'ntksap_jax[experiments]'"
        ) from error
    except Exception as error:
        raise DataError(
            f"{prepared.folder}: TFDS cannot open the {split} records "
            f"({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error


def _decode(encoded: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
        if image.size != (shape[1], shape[0]):  # Nothing is decoded yet.
            raise ValueError(f"an image of {image.size} pixels, expected {(shape[1], shape[0])}")
        pixels = np.asarray(image.convert("L" if shape[-1] == 1 else "RGB"))
    return pixels.reshape(shape)


def _shards(spec: Spec, folder: Path, info: dict[str, Any]) -> list[Path]:
    shards = []
    for split in info["splits"]:
        if split["name"] in spec.splits:
            total = len(split["shardLengths"])
            shards += [
                folder / f"{spec.name}-{split['name']}.array_record-{index:05d}-of-{total:05d}"
                for index in range(total)
            ]
    return shards


def _versions(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(
        path.name for path in folder.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", path.name)
    )
