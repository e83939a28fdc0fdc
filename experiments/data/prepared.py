"""Folders that TFDS has prepared: where they are, and the images in them.

A folder is read by itself (`builder_from_directory`): by its name, TFDS would retry the network for
minutes where there is none, and then blame the wrong thing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pooch
from rich.console import Console
from rich.progress import Progress

from experiments.data import crops
from experiments.data.catalogue import SPECS, Spec
from experiments.shell.errors import DataError
from ntksap_jax import _tensors

CHUNK = 1000
"""Records read at once: reading them one by one takes ten times longer."""

CACHE_FORMAT = 2
"""Part of the name of a cached file; to be raised when decoding changes."""

Arrays = dict[str, np.ndarray]

_log = logging.getLogger(__name__)


def data_root(data_dir: str | os.PathLike[str] | None) -> Path:
    """Returns the folder of prepared data: the argument, TFDS_DATA_DIR or TFDS's default."""
    return Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or Path("~", "tensorflow_datasets")
    ).expanduser()


def folder(spec: Spec, root: Path) -> Path:
    """Returns where the prepared folder of a data set is, or would be."""
    return root / spec.name / spec.version


def is_there(folder: Path) -> bool:
    """Whether TFDS has prepared the folder: its `dataset_info.json` comes last."""
    return (folder / "dataset_info.json").is_file()


def locate(spec: Spec, root: Path) -> Path:
    """Returns the prepared folder of a data set.

    Raises:
        DataError: there is none; the message says how to make it.
    """
    found = folder(spec, root)
    if is_there(found):
        return found
    versions = [p.name for p in found.parent.glob("*") if re.fullmatch(r"\d+\.\d+\.\d+", p.name)]
    if found.exists():
        problem, advice = f"{found} has no dataset_info.json", "Move it away and run"
    else:
        others = f", there is {', '.join(versions)}" if versions else ""
        problem = f"{spec.name} is not prepared in {root} (looked for {found}{others})"
        advice = "Run"
    advice += (
        f" `python -m experiments.data prepare {spec.name} --data-dir {shlex.quote(str(root))}`"
    )
    if spec.name not in SPECS:
        advice = f"Prepare {spec.name} by TFDS, with file_format='array_record'"
    raise DataError(
        f"{problem}. {advice}, or name an existing TFDS folder in array_record format by "
        "--data-dir or TFDS_DATA_DIR"
    )


def label_names(spec: Spec, folder: Path) -> tuple[str, ...]:
    """Returns the class names of a prepared folder; the numbers themselves if it has none."""
    path = folder / "label.labels.txt"
    names = path.read_text().split("\n") if path.exists() else []
    return tuple(filter(None, names)) or tuple(map(str, range(spec.num_classes)))


_IS_READ = re.compile(
    r"dataset_info\.json|features\.json|label\.labels\.txt|.*\.array_record-\d+-of-\d+"
)


def fingerprint(folder: Path) -> str:
    """Returns the SHA-256 of what is read of a prepared folder: about 0.1 s for 50 MB."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if _IS_READ.fullmatch(path.name)):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


def import_tfds() -> Any:
    """Imports TFDS, which takes seconds; a `DataError` if a package is missing."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise DataError(
            f"this data set needs a package that is not installed ({error}): "
            "pip install -e '.[experiments]'"
        ) from error
    return tensorflow_datasets


class Records:
    """The records of one of `spec.splits` in a prepared folder, see `streaming.EncodedImages`.

    Raises:
        DataError: TFDS cannot read them, or there are not as many as in the official data set.
    """

    def __init__(self, spec: Spec, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        tfds = import_tfds()
        try:
            # SkipDecoding hands out the stored bytes; TFDS's other way needs TensorFlow.
            self._records: Any = tfds.builder_from_directory(folder).as_data_source(
                split, decoders={"image": tfds.decode.SkipDecoding()}
            )
            self._length = len(self._records)
        except Exception as error:  # Of many kinds, for files that are damaged or missing.
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise DataError(
                f"{folder}: TFDS cannot open the {split} records ({reason}). Move the folder away "
                "and prepare it again, in array_record format"
            ) from error
        expected = (spec.num_train, spec.num_test)[spec.splits.index(split)]
        if self._length != expected:
            raise DataError(f"{folder} has {self._length} {split} images, not {expected}")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        record = self._records[index]
        return record["image"], int(record["label"])

    def where(self, index: int) -> str:
        """Names the folder, the split and the record."""
        return f"{self._folder}, {self._split} record {index}"

    def read_labels(self) -> np.ndarray:
        """Returns the labels of all images, int32 (N,).

        Labels lie beside the images, so that the first call reads the whole split; then they are
        cached as decoded images are.
        """
        info = hashlib.sha256((self._folder / "dataset_info.json").read_bytes()).hexdigest()
        name = f"{self._folder.parent.name}-{self._split}-labels-{info[:16]}"

        def scan() -> Arrays:
            labels = np.empty(len(self), np.int32)
            for rows, records in self.chunks(f"reading the labels of {self._folder.parent.name}"):
                labels[rows] = [int(record["label"]) for record in records]
            return {"labels": labels}

        return cached(name, scan)["labels"]

    def chunks(self, text: str) -> Iterator[tuple[slice, Any]]:
        """Yields slices and their records, with a bar on a terminal."""
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal) as bar:
            for start in bar.track(range(0, len(self), CHUNK), description=text):
                rows = slice(start, min(start + CHUNK, len(self)))
                yield rows, self._records.__getitems__(list(range(rows.start, rows.stop)))


def read_split(spec: Spec, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Reads and decodes all images of one split, in the order of the records.

    Pillow decodes, whatever else is installed: decoders differ in the pixels they make of a JPEG.

    Returns:
        Images uint8 (N, H, W, C), labels int32 (N,), and how many images are JPEGs.

    Raises:
        DataError: the records are damaged, or not those of the official data set.
    """
    records = Records(spec, folder, split)
    images = np.empty((len(records), *spec.image_shape), np.uint8)
    labels = np.empty(len(records), np.int32)
    num_jpeg = 0
    size, mode = spec.image_shape[1::-1], "L" if spec.image_shape[-1] == 1 else "RGB"
    try:
        for rows, chunk in records.chunks(f"decoding {spec.name}, {split}"):
            for row, record in enumerate(chunk, rows.start):
                image = np.asarray(crops.decode(record["image"], mode=mode, size=size))
                images[row] = image.reshape(spec.image_shape)
                labels[row] = record["label"]
                num_jpeg += record["image"].startswith(b"\xff\xd8")
        if not 0 <= labels.min() <= labels.max() < spec.num_classes:
            raise ValueError(f"labels from {labels.min()} to {labels.max()}")
    # RuntimeError is array_record's, for a checksum that fails; the others come from decoding.
    except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: the {split} records are truncated or damaged "
            f"({' '.join(str(error).split())}). Move the folder away and prepare it again"
        ) from error
    return images, labels, num_jpeg


def cached(name: str, make: Callable[[], Arrays]) -> Arrays:
    """Returns the arrays kept under `name` in the user's cache, or makes and keeps them.

    `name` must say all that the arrays depend on. A damaged file is reported, and replaced. A cache
    that cannot be written is reported, and the arrays are returned all the same.
    """
    path = Path(pooch.os_cache("ntksap_jax")) / "decoded" / f"{name}.safetensors"
    if path.exists():
        try:
            headers, metadata = _tensors.read_headers(path)
            arrays = _tensors.read_arrays(path, headers)
            if _tensors.digest(arrays) != metadata.get("digest"):
                raise ValueError("it does not hold the arrays that were saved")
            return arrays
        except (OSError, ValueError) as error:
            _log.warning("cannot use %s (%s): reading the data set again", path, error)
    made = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _tensors.write(path, made, {"digest": _tensors.digest(made)})
    except OSError as error:
        _log.warning("cannot keep %s, the next run decodes again (%s)", path, error)
    return made
