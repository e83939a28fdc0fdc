"""Child processes that answer: started, asked and ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from typing import Any

Answer = Callable[[Any], Any]
"""`answer(order)`, what a child does with an order."""


class ChildLost(Exception):
    """A child process failed or ended; the message says which, and how."""


@contextlib.contextmanager
def start(
    title: str, prepare: Callable[..., tuple[Any, Answer]], *arguments: Any
) -> Generator[Answer]:
    """Starts a child, and ends it in the end.

    Args:
        title: its name in messages.
        prepare: `prepare(*arguments) -> (first answer, answer)`, a function of a module, which the
            child imports.
        arguments: are pickled, as are all answers.

    Yields:
        `ask(order)`, which sends an order, unless it is None, and waits for the answer: without an
        order, for the first. It raises `ChildLost` if the child failed, or ended instead.
    """
    # Not fork: JAX's threads do not survive it.
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, prepare, arguments), daemon=True)
    process.start()
    theirs.close()

    def ask(order: Any) -> Any:
        try:
            if order is not None:
                connection.send(order)
            failure, answer = connection.recv()
        except (EOFError, ConnectionError):
            process.join()
            raise ChildLost(f"{title} {_describe_end(process.exitcode or 0)}") from None
        if failure:
            raise ChildLost(f"{title} failed: {failure}")
        return answer

    try:
        yield ask
    finally:
        connection.close()
        process.terminate()
        process.join()


def _describe_end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}{', for want of memory?' if name == 'SIGKILL' else ''}"


def _serve(connection: Connection, prepare: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent handles Ctrl-C.
    try:
        first, answer = prepare(*arguments)
        connection.send(("", first))
        while True:
            connection.send(("", answer(connection.recv())))
    except (EOFError, BrokenPipeError):  # The parent has what it wanted.
        pass
    except Exception as error:
        connection.send((f"{type(error).__name__}: {error}", None))
