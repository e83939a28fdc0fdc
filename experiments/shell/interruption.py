"""Preemption: SIGTERM lets the program save what it has, and end with a code of its own.

Schedulers send SIGTERM some seconds before SIGKILL. Ctrl-C (SIGINT) is not handled here: it stops
at once, and costs what was done since the last checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from experiments.shell.errors import Preempted

EXIT_CODE = os.EX_TEMPFAIL
"""75, "temporary failure, try again" in sysexits.h: the state is saved, `--resume` goes on."""


def stop(signal_number: int, frame: Any) -> NoReturn:
    """Handles SIGTERM where there is nothing to save."""
    raise Preempted


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Has SIGTERM only noted; yields a function that says whether it came.

    The one who asks saves, and raises `Preempted`. A signal that nobody asked for any more goes to
    the former handler in the end. Outside of the main thread, where Python handles no signals,
    nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    noted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGTERM, before)
    if noted and callable(before):
        before(signal.SIGTERM, None)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Has SIGTERM raise `Preempted` wherever the main thread is."""
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
