"""Files that neither a crash nor a power cut leaves half-written, and that may be damaged."""

from __future__ import annotations

import os
import stat
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


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong while a file is read into a `ValueError` that names it.

    Libraries raise a dozen kinds of errors for damaged files, and document few of them.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("no regular file")
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        suffix = f" {path.suffix}" if path.suffix else ""
        reason = " ".join(f"{kind}{error}".split())[:200]
        raise ValueError(
            f"path: {path} is not a readable{suffix} file ({reason}): truncated or damaged, "
            "or written by something else. Restore it, or make it again."
        ) from error
