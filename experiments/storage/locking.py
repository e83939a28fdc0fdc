"""One program at a time in a run folder: a lock that the system drops when its holder ends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from experiments.shell.errors import Held, UserError

NAME = "lock"
"""The file in a run folder. It stays there: to remove it would be a race."""


@contextlib.contextmanager
def try_lock(path: Path, *, seconds: float = 0.0) -> Iterator[bool]:
    """Yields whether this process could lock the file, whose contents do not matter.

    Args:
        path: the file.
        seconds: how long to wait for another one to release it; -1 for as long as it takes.

    Raises:
        UserError: the file system has no locks.
    """
    # No lock files that would outlive a killed program, where the system has no locks.
    lock = filelock.FileLock(path, timeout=seconds, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    except OSError as error:
        raise UserError(
            f"cannot lock {path} ({error.strerror}): its file system has no locks, without which "
            "two programs could write there. Choose another --runs-dir"
        ) from error
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def hold(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps other programs out of a run folder.

    Args:
        folder: the run folder.
        wait: wait until no other one is in it.

    Raises:
        Held: another one is in it.
        UserError: the file system has no locks.
    """
    path = folder / NAME
    with try_lock(path, seconds=-1.0 if wait else 0.0) as is_ours:
        if not is_ours:
            holder = path.read_text(errors="replace")[:200].strip() or "another process"
            raise Held(
                f"{folder} is in use by {holder}, and two programs cannot write there. Wait for it "
                "or end it, or use another --runs-dir or --label"
            )
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield


def is_held(folder: Path, name: str = NAME) -> bool:
    """Says whether a program has locked the file in the run folder."""
    if not (folder / name).exists():
        return False
    with try_lock(folder / name) as is_free:
        return not is_free
