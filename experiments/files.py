"""Files that neither a crash nor a power cut leaves half-written, and records that show damage."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yields a path to write to, which takes the place of `path` when all went well.

    The contents are on the disk before the name is, and the name before this returns.
    """
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield made
        sync(made)
        os.replace(made, path)
        sync(path.parent)
    finally:
        made.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def leftovers(folder: Path) -> list[Path]:
    """Returns what killed programs wrote aside."""
    return list(folder.glob(".*.[0-9]*"))


def remove_leftovers(folder: Path) -> None:
    """Removes what killed programs wrote aside; only for one who has locked the folder."""
    for path in leftovers(folder):
        path.unlink(missing_ok=True)


def seal(value: Any) -> dict[str, Any]:
    """Returns a value, of what JSON can hold, together with its SHA-256."""
    return {"sha256": digest(value), "value": value}


def unseal(record: Any) -> Any:
    """Returns the value that `seal` was given.

    Raises:
        ValueError: the record is not one, or its value is not the one that was sealed.

    >>> unseal(seal({"loss": [0.1, 2]}))
    {'loss': [0.1, 2]}
    """
    if not isinstance(record, dict) or record.keys() != {"sha256", "value"}:
        raise ValueError("it is not a record of this program")
    if record["sha256"] != digest(record["value"]):
        raise ValueError("its SHA-256 is not the recorded one")
    return record["value"]


def digest(value: Any) -> str:
    """Returns the SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
