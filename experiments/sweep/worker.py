"""A worker of a sweep: it carries out one cell after the other, each by its own command.

`local` starts workers as processes, and `cluster` has Ray call `run_cell`. One process takes many
cells, since on small ones the start of a program, its imports and the tracing of its functions,
would take most of the time. This module imports nothing of JAX: what JAX reads from the environment
is set before.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from experiments.shell import interruption

STOP_SECONDS = 10.0
"""How long a cell has to save and end when it is told to, before its process is ended."""


def run_cell(module: str, arguments: Sequence[str], folder: Path) -> int:
    """Carries out the command of a cell, in this process; returns its exit code.

    What it prints goes to the end of `log.txt` in the run folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").unlink(missing_ok=True)
    with _output_to(folder / "log.txt"):
        print(f"$ python -m {module} {shlex.join(arguments)}", flush=True)
        try:
            importlib.import_module(f"{module}.program").main(list(arguments))
        except SystemExit as end:
            return int(end.code or 0)
        except Exception as error:
            traceback.print_exc()
            # Last, for whoever looks only there: JAX ends its tracebacks with remarks of its own.
            why = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"error: {why}", file=sys.stderr)
            return 1
    return 0


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Has what this process prints, libraries in C++ included, go to the end of a file."""
    before = os.dup(1), os.dup(2)
    try:
        with path.open("a", encoding="utf-8") as log:
            _redirect(log.fileno(), log.fileno())
        yield
    finally:
        _redirect(*before)
        for copy in before:
            os.close(copy)


def _redirect(output: int, errors: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(output, 1)
    os.dup2(errors, 2)


class Stopped(Exception):
    """A cell was told to save and end."""


def run_for_ray(
    environment: Mapping[str, str], place: str, module: str, arguments: Sequence[str], folder: str
) -> tuple[int, float]:
    """Carries out a cell on a machine of a cluster, as `run_cell` does; returns code and seconds.

    The variables of the `environment` are set before JAX starts; `folder` is relative to `place`.

    Raises:
        Stopped: the machine goes away; Ray may try the cell again.
    """
    os.environ.update(environment)
    os.chdir(place)
    # `ray.cancel` interrupts; the programs save at SIGTERM.
    before = {
        signal.SIGINT: signal.signal(
            signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM)
        ),
        signal.SIGTERM: signal.signal(signal.SIGTERM, interruption.stop),
    }
    start = time.monotonic()
    try:
        code = run_cell(module, arguments, Path(folder))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code == os.EX_TEMPFAIL:
        raise Stopped
    return code, time.monotonic() - start


def main(cores: Sequence[str]) -> None:
    """Carries out the cells that standard input names, a line each; answers with their exit codes.

    At the end of standard input, which comes too when the sweep is killed, a cell that runs is told
    to save and end, by SIGTERM. Without `cores` this process may use all that there are.
    """
    # Before JAX starts its threads: it takes as many as there are cores that it may use.
    if cores:
        os.sched_setaffinity(0, map(int, cores))
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put("")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_SECONDS)
        os._exit(1)  # Whatever it waits for: nobody waits for it any more.

    threading.Thread(target=listen, daemon=True).start()
    while line := lines.get():
        module, arguments, folder = json.loads(line)
        code = run_cell(module, arguments, Path(folder))
        with contextlib.suppress(BrokenPipeError):
            print(code, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
