"""Files that are written as a whole, read whoever wrote them, and records that show damage."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.shell.errors import UserError
from ntksap_jax._files import aside as aside

LARGEST = 1 << 26
"""Bytes of a text that is read at once: 64 MiB, more than any run writes."""


def write_text(path: Path, text: str) -> None:
    """Writes a text as a whole or not at all."""
    with aside(path) as made:
        made.write_text(text, encoding="utf-8")


def read_text(path: Path, *, largest: int = LARGEST) -> str:
    """Reads a text that anybody may have written.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than `largest` bytes, or not UTF-8.
    """
    with path.open("rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise ValueError(f"it is too long, expected at most {largest} bytes")
    return data.decode()


RESTORE = "Restore it, or delete the folder"


@contextlib.contextmanager
def reading(what: object, advice: str = RESTORE) -> Iterator[None]:
    """Turns an error about a file into a `UserError` that says which it is, and what to do."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"cannot read {what}: {error}. {advice}") from error


def read_json(path: Path, kind: type = dict, *, advice: str = RESTORE) -> Any:
    """Reads JSON that anybody may have written: a dict, or what else is asked for.

    Raises:
        UserError: it cannot be read, is no such text, or holds something else.
    """
    with reading(path, advice):
        try:
            value = json.loads(read_text(path))
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        if not isinstance(value, kind):
            raise ValueError(f"expected a {kind.__name__}, got {type(value).__name__}")
    return value


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


def read_sealed(path: Path, *, advice: str = RESTORE) -> Any:
    """Reads the value of a sealed record, as `read_json` does."""
    with reading(path, advice):
        return unseal(read_json(path, advice=advice))


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
