"""SIGTERM: noted while there is something to save, an exception elsewhere."""

import concurrent.futures
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.shell import interruption
from experiments.shell.errors import Preempted

ROOT = Path(__file__).parent.parent


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_signal_is_only_noted():
    with interruption.deferred() as stop_requested:
        assert not stop_requested()
        terminate()
        assert stop_requested()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_nobody_asked_for_goes_to_the_former_handler():
    with interruption.raised():
        with pytest.raises(Preempted), interruption.deferred():
            terminate()
        # Who raised it has handled it.
        with pytest.raises(Preempted), interruption.deferred():
            terminate()
            raise Preempted
        with pytest.raises(Preempted):
            terminate()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_other_threads_than_the_first_go_unnoted():
    def work():
        with interruption.deferred() as stop_requested:
            return stop_requested()

    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert pool.submit(work).result() is False


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("cifar demo", signal.SIGTERM),
        *((name, signal.SIGINT) for name in ("sweep digits", "report", "data")),
    ],
)
def test_while_a_program_is_imported_a_signal_ends_it_in_one_line(command, number, tmp_path):
    name, *arguments = command.split()
    # Python's own start, which is not ours to guard, is over when it has found the program.
    program = subprocess.Popen(
        [sys.executable, "-v", "-m", f"experiments.{name}", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in program.stderr:
        if line.startswith("import 'numpy"):  # In the middle of the imports.
            program.send_signal(number)
            break
    rest = program.stderr.read()
    program.stderr.close()
    assert program.wait(timeout=60) == (130 if number == signal.SIGINT else 75)
    assert "Traceback" not in rest and "interrupted\n" in rest
