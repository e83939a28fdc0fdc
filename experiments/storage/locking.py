"""One program at a time in a run folder: a lock that the system drops when its holder ends.

The lock is `flock` on a file, whatever happens to the file's contents, which only say who holds it.
Linux and macOS; on Windows there is no `fcntl`, and the programs do not run there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from experiments.shell.errors import Held, UserError

NAME = "lock"
"""The file in a run folder. It stays there: to remove it would be a race."""


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Yields whether this process could lock the file; the lock ends with the process at latest.

    Raises:
        UserError: the file system has no locks.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            raise UserError(
                f"cannot lock {path} ({error.strerror}): its file system has no locks, without "
                "which two programs could write there. Choose another --runs-dir"
            ) from error
        yield True


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keeps other programs out of a run folder.

    Raises:
        Held: another one is in it.
        UserError: the file system has no locks.
    """
    path = folder / NAME
    with try_lock(path) as is_ours:
        if not is_ours:
            with path.open(errors="replace") as file:
                holder = file.read(200).strip() or "another process"
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
