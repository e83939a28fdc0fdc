"""Decoded images kept on disk: one file a data set, found again by content."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ntksap_jax import _tensors

Arrays = Mapping[str, np.ndarray]

_log = logging.getLogger(__name__)


def fingerprint(files: Iterable[Path]) -> str:
    """Returns the SHA-256 of names and contents: about 0.1 s for 50 MB, and nothing can slip by."""
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


def folders(beside: Path) -> tuple[Path, Path]:
    """Returns where decoded images may lie: beside the prepared data, or in the user's cache."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path("~", ".cache")).expanduser()
    return beside / "decoded", user / "ntksap_jax" / "decoded"


def get(
    name: str, places: Sequence[Path], make: Callable[[], Arrays], *, expected: set[str]
) -> Arrays:
    """Returns the arrays cached under `name`, or makes and caches them.

    A damaged file is reported, and replaced. A cache that cannot be written is reported, and the
    arrays are returned all the same.

    Args:
        name: file name without suffix; it must say all that the arrays depend on.
        places: folders to look in; the first that can be written takes a new file.
        make: makes the arrays.
        expected: names of the arrays.
    """
    for place in places:
        path = place / f"{name}.safetensors"
        if path.exists():
            try:
                return _read(path, expected)
            except (OSError, ValueError) as error:
                _log.warning("cannot use %s (%s): decoding the images again", path, error)
    arrays = make()
    for place in places:
        if is_writable(place):
            try:
                _write(place / f"{name}.safetensors", arrays)
                return arrays
            except OSError as error:
                _log.warning("cannot write %s (%s)", place / f"{name}.safetensors", error)
    _log.warning(
        "decoded images are not cached, the next run decodes again: none of %s is writable",
        ", ".join(map(str, places)),
    )
    return arrays


def _read(path: Path, expected: set[str]) -> Arrays:
    headers, metadata = _tensors.read_headers(path)
    arrays = _tensors.read_arrays(path, headers)
    if set(headers) != expected or _tensors.digest(arrays) != metadata.get("digest"):
        raise ValueError(f"it does not hold the {' and '.join(sorted(expected))} that were saved")
    return arrays


def _write(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _tensors.write(path, arrays, {"digest": _tensors.digest(arrays)})


def is_writable(folder: Path) -> bool:
    """Whether files may be made in `folder`, which need not exist yet.

    The mode counts too: root may write anywhere, but a folder without any write bit is meant to
    stay as it is.
    """
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    return bool(nearest.stat().st_mode & 0o222) and os.access(nearest, os.W_OK | os.X_OK)
