"""One program at a time in a run folder: a lock that the system drops when its holder ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from experiments.shell.errors import Held, UserError

NAME = "lock"
"""The file in a run folder. It stays there: to remove it would be a race."""


@contextlib.contextmanager
def hold(folder: Path, *, seconds: float = 1.0) -> Iterator[None]:
    """Keeps other programs out of a run folder.

    Args:
        folder: the run folder.
        seconds: how long to wait until no other one is in it, or looks (see `is_held`).

    Raises:
        Held: another one is in it.
        UserError: the file system has no locks.
    """
    path = folder / NAME
    # No lock files that would outlive a killed program, where the system has no locks.
    lock = filelock.FileLock(path, timeout=seconds, fallback_to_soft=False)
    try:
        with _locks(path):
            held = lock.acquire()
    except filelock.Timeout:
        holder = path.read_text(errors="replace")[:200].strip() or "another process"
        raise Held(
            f"{folder} is in use by {holder}, and two programs cannot write there. Wait for it or "
            "end it, or use another --runs-dir or --label"
        ) from None
    with held:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield


def is_held(folder: Path) -> bool:
    """Says whether a program is in the run folder, by a lock that any number of lookers share."""
    path = folder / NAME
    if not path.exists():
        return False
    with path.open("rb") as file, _locks(path):
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def _locks(path: Path) -> Iterator[None]:
    try:
        yield
    except filelock.Timeout:
        raise
    except OSError as error:
        raise UserError(
            f"cannot lock {path} ({error.strerror}): its file system has no locks, without which "
            "two programs could write there. Choose another --runs-dir"
        ) from error
