"""Data sets that are folders of image files: Tiny-ImageNet's own layout, and ImageNet's.

Only names are read here, before anything else starts; the files are opened when their turn comes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.shell.errors import DataError

SUFFIXES = (".jpeg", ".jpg", ".png")
RESTORE = "Unpack the original archive again"


@dataclass(frozen=True)
class ImageFiles:
    """The image files of one split, see `streaming.EncodedImages`.

    Attributes:
        folder: the folder that `names` are relative to.
        names: UTF-8 bytes, (N,): of fixed width, because a million of them go to every worker.
        labels: int32, (N,).
    """

    folder: str
    names: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return Path(self.where(index)).read_bytes(), int(self.labels[index])

    def where(self, index: int) -> str:
        """Returns the path of an image."""
        return os.path.join(self.folder, self.names[index].decode())

    def read_labels(self) -> np.ndarray:
        """Returns the labels of all images, int32 (N,)."""
        return self.labels


class ImageFolder(NamedTuple):
    """A data set of image files: two splits, the name of each class, and a fingerprint."""

    train: ImageFiles
    test: ImageFiles
    class_names: tuple[str, ...]
    fingerprint: str


def tiny_imagenet(folder: Path) -> ImageFolder:
    """Finds the images in the official layout of Tiny-ImageNet; the validation split is the test.

    Reads `wnids.txt` (one WordNet id a line: the order of the classes), `words.txt` (their names),
    `train/<wnid>/images/*.JPEG`, and `val/val_annotations.txt` with `val/images/*.JPEG`. Any number
    of images will do.

    Raises:
        OSError: something is missing.
        DataError: something is empty, or names a class that is not there.
    """
    label_of = {wnid: label for label, wnid in enumerate(_lines(folder / "wnids.txt"))}
    _refuse_unknown_classes(folder / "train", label_of)
    train = _labelled(folder, [f"train/{wnid}/images" for wnid in label_of])

    present = set(_image_names(folder / "val" / "images"))
    annotations = folder / "val" / "val_annotations.txt"
    test = []
    for number, line in enumerate(_lines(annotations), start=1):
        name, wnid = (*line.split("\t"), "", "")[:2]
        if wnid not in label_of:
            problem = f"{wnid!r} is none of the {len(label_of)} classes in wnids.txt"
            raise DataError(f"{annotations}, line {number}: {problem}. {RESTORE}")
        if name not in present:
            raise DataError(f"{annotations}, line {number}: there is no {name}. {RESTORE}")
        test.append((f"val/images/{name}", label_of[wnid]))

    words = dict(line.split("\t", 1) for line in _lines(folder / "words.txt") if "\t" in line)
    return _image_folder(folder, train, test, [words.get(wnid, wnid) for wnid in label_of])


def imagenet(folder: Path) -> ImageFolder:
    """Finds the images in `train/<class>/*.JPEG` and `val/<class>/*.JPEG`; `val` is the test split.

    The classes are the folders of `train` in the order of their names; those of `val` are the same.

    Raises:
        OSError: something is missing.
        DataError: something is empty.
    """
    classes = sorted(_folders(folder / "train"))
    if not classes:
        raise DataError(f"{folder / 'train'} holds no folder of a class. {RESTORE}")
    _refuse_unknown_classes(folder / "val", classes)
    train, test = (
        _labelled(folder, [f"{split}/{name}" for name in classes]) for split in ("train", "val")
    )
    return _image_folder(folder, train, test, classes)


def _image_folder(
    folder: Path,
    train: Sequence[tuple[str, int]],
    test: Sequence[tuple[str, int]],
    class_names: Sequence[str],
) -> ImageFolder:
    files = []
    for images in (train, test):
        names, labels = zip(*images, strict=True)
        encoded = np.array([name.encode() for name in names])
        files.append(ImageFiles(str(folder), encoded, np.array(labels, np.int32)))
    listing = "\n".join(f"{name} {label}" for name, label in (*train, *test))
    fingerprint = hashlib.sha256(listing.encode()).hexdigest()
    return ImageFolder(files[0], files[1], tuple(class_names), fingerprint)


def _labelled(folder: Path, class_folders: Sequence[str]) -> list[tuple[str, int]]:
    return [
        (f"{class_folder}/{name}", label)
        for label, class_folder in enumerate(class_folders)
        for name in _image_names(folder / class_folder)
    ]


def _image_names(folder: Path) -> list[str]:
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES))
    if not names:
        raise DataError(f"{folder} holds no image ({', '.join(SUFFIXES)}). {RESTORE}")
    return names


def _refuse_unknown_classes(folder: Path, known: Collection[str]) -> None:
    unknown = sorted(set(_folders(folder)) - set(known))
    if unknown:
        raise DataError(
            f"{folder / unknown[0]} is the folder of an unknown class: it is none of the "
            f"{len(known)} expected ones. Move it away, or unpack the original archive again"
        )


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_dir()]


def _lines(path: Path) -> list[str]:
    lines = [line.rstrip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty. {RESTORE}")
    return lines
