"""All the ways in which a program ends otherwise than by success; `exits` gives each its code."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator


class UserError(ValueError):
    """What the person at the keyboard can put right: shown as one line, without traceback."""


class DataError(UserError):
    """A data set cannot be had as it is. The message is the whole story, in one line."""


class Held(UserError):
    """Another program holds the lock of a folder."""


class RunFailed(Exception):
    """A run that cannot go on; the message is shown as one line."""


class Preempted(BaseException):
    """The program was told to end by SIGTERM. No `Exception`: nothing but a program handles it."""


@contextlib.contextmanager
def at(where: str) -> Iterator[None]:
    """Turns a `ValueError` into a `UserError` that begins with the place it is about, if any."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from error


def disk_full(error: BaseException) -> str | None:
    """Returns the line about a full disk, if that is what an error goes back to.

    Not only `OSError`: the libraries that write checkpoints turn it into errors of their own, which
    quote the system's words.
    """
    reasons = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
    for cause in causes(error):
        for reason in reasons:
            if reason in str(cause):
                path = getattr(cause, "filename", None)
                return (
                    f"the disk is full: {reason}{f' ({path})' if path else ''}. What was saved "
                    "before is kept: make room"
                )
    return None


def causes(error: BaseException | None) -> list[BaseException]:
    """Returns an error and all that led to it, the last first."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain
