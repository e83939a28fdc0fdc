"""The child processes of a case: start them, ask them, stop them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from typing import IO, Any, NamedTuple

from experiments.benchmark.types import OURS, Case

STOP_SECONDS = 5.0
"""How long a child has to end by itself."""


class ChildLost(Exception):
    """A child process ended; the message says whose, how, and its last words."""


class Child(NamedTuple):
    """A running child.

    Attributes:
        side: whose it is.
        process: the process; its standard input and output are pipes of text.
        errors: the file that its standard error goes to.
    """

    side: str
    process: subprocess.Popen[str]
    errors: IO[str]


def title(side: str) -> str:
    """Returns the name of a side as people say it."""
    return "ours" if side == OURS else f"PyTorch ({side.replace('_', ' ')})"


def command(side: str, case: Case, cores: int) -> list[str]:
    """Returns the command line of a child."""
    module = "experiments.benchmark.worker"
    return [sys.executable, "-m", module, side, str(cores), json.dumps(dataclasses.asdict(case))]


@contextlib.contextmanager
def start(side: str, case: Case, cores: int) -> Generator[Child]:
    """Starts a child, which prepares; `ask` for its first answer. Ends it in the end."""
    # Its compilations are timed: none may come from a cache. Both sides are for the CPU.
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            command(side, case, cores),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        try:
            yield Child(side, process, errors)
        finally:
            _stop(process)


def ask(child: Child, order: str = "") -> dict[str, Any]:
    """Sends a child an order, if there is one, and waits for its answer.

    Raises:
        ChildLost: it ended instead.
    """
    assert child.process.stdin is not None and child.process.stdout is not None
    if order:
        with contextlib.suppress(BrokenPipeError):  # No answer will come either.
            child.process.stdin.write(order + "\n")
            child.process.stdin.flush()
    line = child.process.stdout.readline()
    if line:
        answer: dict[str, Any] = json.loads(line)
        return answer
    how = _describe_end(child.process.wait())
    child.errors.seek(0)
    words = [text for text in child.errors.read().splitlines() if text.strip()]
    last = f": {words[-1].strip()}" if words else ""
    raise ChildLost(f"the process of {title(child.side)} {how}{last}")


def _describe_end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}{', for want of memory?' if name == 'SIGKILL' else ''}"


def _stop(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
