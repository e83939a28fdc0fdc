"""Files that neither a crash nor a power cut leaves half-written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yields a path to write to, which takes the place of `path` when all went well.

    The contents are on the disk before the name is, and the name before this returns.
    """
    made = path.with_name(f".{path.name}.{os.getpid()}")
    # What lies there is not ours: if it were a link, we would write to where it points.
    made.unlink(missing_ok=True)
    try:
        yield made
        sync(made)
        os.replace(made, path)
        sync(path.parent)
    finally:
        made.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, would survive a power cut."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows opens no folders, and keeps their names by itself.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
