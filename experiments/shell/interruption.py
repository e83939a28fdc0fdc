"""Preemption: SIGTERM lets the program save what it has, and end with a code of its own.

Schedulers send SIGTERM some seconds before SIGKILL. Ctrl-C (SIGINT) stops at once, and costs what
was done since the last checkpoint. While a program is imported both end it.
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

CTRL_C_CODE = 130
"""128 + SIGINT, as shells have it."""

_FORMER: dict[int, Any] = {}


def guard_imports() -> None:
    """Has Ctrl-C and SIGTERM end the program in one line, until `end_guard`.

    The imports of a program take seconds. An exception that a signal raises within one could be
    lost there, or come out as another one.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # As it is in the background of a shell.
            _FORMER[number] = signal.signal(number, _end_at_once)


def end_guard() -> None:
    """Has the signals do again what they did before `guard_imports`, if that was called."""
    while _FORMER:
        signal.signal(*_FORMER.popitem())


def _end_at_once(signal_number: int, frame: Any) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(CTRL_C_CODE if signal_number == signal.SIGINT else EXIT_CODE)


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
