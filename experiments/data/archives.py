"""The official archives of the data sets: from files on disk to arrays, checked against the sizes.

Nothing is unpacked to disk: members are read from the stream by name, and nothing is unpickled.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.catalogue import Spec
from experiments.shell.errors import DataError


class Split(NamedTuple):
    """Images uint8 (N, H, W, C), and per label feature the labels (N,)."""

    images: np.ndarray
    labels: dict[str, np.ndarray]


class Contents(NamedTuple):
    """Both splits, and the class names of the label features where the archive has them."""

    train: Split
    test: Split
    names: dict[str, list[str]]


class _CifarLayout(NamedTuple):
    """Members of a CIFAR archive; each row of a binary member is one byte a label, then pixels."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: dict[str, str]  # label feature, in the order of a row's bytes, to member with its names


_CIFAR10 = _CifarLayout(
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test=("test_batch.bin",),
    names={"label": "batches.meta.txt"},
)
_CIFAR100 = _CifarLayout(
    folder="cifar-100-binary",
    train=("train.bin",),
    test=("test.bin",),
    names={"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
)


def read(spec: Spec, files: Sequence[Path]) -> Contents:
    """Reads the official files of a data set.

    Args:
        spec: the data set; its split sizes are expected exactly.
        files: paths, in the order of `spec.source.files`.

    Raises:
        DataError: a file is damaged, or does not hold what it should.
    """
    try:
        return _READERS[spec.name](spec, files)
    except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise DataError(f"{files[0].parent}: the archive is damaged ({error})") from error


def _read_cifar(layout: _CifarLayout, spec: Spec, files: Sequence[Path]) -> Contents:
    (path,) = files
    height, width, channels = spec.image_shape
    num_labels = len(layout.names)
    row = num_labels + height * width * channels
    largest = max(spec.num_train, spec.num_test) * row
    members = _read_members(
        path, layout.folder, (*layout.train, *layout.test, *layout.names.values()), largest
    )

    def split(names: Sequence[str], expected: int) -> Split:
        for name in names:
            if len(members[name]) % row:
                raise DataError(f"{path}: {name} is not made of rows of {row} bytes")
        data = np.frombuffer(b"".join(members[name] for name in names), np.uint8)
        data = data.reshape(-1, row)
        _check_count(path, len(data), expected)
        pixels = data[:, num_labels:].reshape(-1, channels, height, width)
        labels = {feature: data[:, index] for index, feature in enumerate(layout.names)}
        return Split(pixels.transpose(0, 2, 3, 1), labels)

    return Contents(
        split(layout.train, spec.num_train),
        split(layout.test, spec.num_test),
        {
            feature: [line for line in members[name].decode().split("\n") if line]
            for feature, name in layout.names.items()
        },
    )


def _read_members(path: Path, folder: str, names: Sequence[str], largest: int) -> dict[str, bytes]:
    wanted = {f"{folder}/{name}": name for name in names}
    members = {}
    with tarfile.open(path, "r|gz") as tar:
        for member in tar:
            name = wanted.get(member.name)
            if name is None:
                continue
            file = tar.extractfile(member) if member.isreg() and member.size <= largest else None
            if file is None:
                raise DataError(f"{path}: {member.name} is no file of at most {largest} bytes")
            members[name] = file.read()
    missing = [name for name in names if name not in members]
    if missing:
        raise DataError(f"{path}: no {folder}/{missing[0]} inside")
    return members


def _read_fashion_mnist(spec: Spec, files: Sequence[Path]) -> Contents:
    train_images, train_labels, test_images, test_labels = files

    def split(images: Path, labels: Path, count: int) -> Split:
        pixels = _read_idx(images, (count, *spec.image_shape[:2]))
        return Split(pixels[..., None], {"label": _read_idx(labels, (count,))})

    return Contents(
        split(train_images, train_labels, spec.num_train),
        split(test_images, test_labels, spec.num_test),
        {},
    )


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Reads unsigned bytes in IDX format: 0, 0, 8, number of axes, their lengths, the values."""
    header = bytes([0, 0, 8, len(shape)]) + np.asarray(shape, ">u4").tobytes()
    size = int(np.prod(shape))
    with gzip.open(path) as file:
        data = file.read(len(header) + size + 1)
    if len(data) >= len(header) and data[:4] == header[:4]:
        _check_count(path, int.from_bytes(data[4:8], "big"), shape[0])
    if not data.startswith(header) or len(data) != len(header) + size:
        raise DataError(f"{path}: no IDX file of unsigned bytes {shape}")
    return np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)


def _check_count(path: Path, count: int, expected: int) -> None:
    if count != expected:
        raise DataError(f"{path}: {count} images in a split, expected {expected}")


_READERS: Mapping[str, Callable[[Spec, Sequence[Path]], Contents]] = {
    "cifar10": lambda spec, files: _read_cifar(_CIFAR10, spec, files),
    "cifar100": lambda spec, files: _read_cifar(_CIFAR100, spec, files),
    "fashion_mnist": _read_fashion_mnist,
}
