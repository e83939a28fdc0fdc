"""How programs end: by one line and an exit code, without a traceback for what can be foreseen.

0    done
1    not all could be done: a score or loss is not finite (see failure/ in the run folder), a cell
     of a sweep or a case of the benchmark failed, a folder was left out of a report
2    a mistake, missing data or damaged files, that only the user can put right
74   the disk is full; what was saved before is kept
75   preempted (SIGTERM): all is saved, --resume goes on
130  Ctrl-C; --resume goes on from the last round or checkpoint

Several processes at one run (`--distributed`) all end with the code of the first that failed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from experiments.shell import errors, interruption
from experiments.shell.errors import Preempted, RunFailed, UserError


@contextlib.contextmanager
def in_one_line(prog: str = "", again: Sequence[str] = ()) -> Iterator[None]:
    """Turns what ends a program into a line and an exit code.

    Args:
        prog: the program's name, such as `python -m experiments.cifar`, if it can be interrupted
            without loss.
        again: the arguments that go on where an interrupted run stopped.
    """
    go_on = f"; to go on where it stopped: {prog} {shlex.join(again)}" if prog else ""
    try:
        interruption.end_guard()
        yield
    except UserError as error:
        stop(f"error: {error}", code=2)
    except RunFailed as error:
        stop(f"error: {error}", code=1)
    except Preempted:
        stop(f"preempted, all is saved{go_on}", code=interruption.EXIT_CODE)
    except KeyboardInterrupt:
        stop(f"interrupted{go_on}", code=interruption.CTRL_C_CODE)
    except Exception as error:
        if message := errors.disk_full(error):
            stop(f"error: {message}{go_on}", code=os.EX_IOERR)
        raise


def stop(message: str, *, code: int) -> NoReturn:
    """Prints one line about the end of the program, and ends it."""
    # What it quotes may come from anybody's file, and is not to command the terminal.
    line = "".join(char if char.isprintable() else "?" for char in " ".join(message.split()))
    print(line, file=sys.stderr)
    sys.exit(code)
