"""The lock of a run folder: held by one process, and dropped by the system when that is killed."""

import concurrent.futures
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.shell import errors
from experiments.shell.errors import UserError
from experiments.storage import locking

HOLDER = """
import sys, time
from pathlib import Path
from experiments.storage import locking
with locking.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.long
def test_another_process_is_kept_out_until_the_holder_is_killed(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        assert locking.is_held(tmp_path)
        where = f"in use by process {holder.pid} on {socket.gethostname()}, and two programs"
        with pytest.raises(errors.Held, match=where), locking.hold(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert not locking.is_held(tmp_path)
        with locking.hold(tmp_path):
            assert f"process {os.getpid()} on" in (tmp_path / locking.NAME).read_text()
    finally:
        holder.kill()
        holder.stdout.close()
        holder.wait()


def test_looking_keeps_nobody_out_and_is_seen_by_nobody(tmp_path):
    path = tmp_path / locking.NAME
    path.touch()
    with path.open() as looker, concurrent.futures.ThreadPoolExecutor() as pool:
        fcntl.flock(looker, fcntl.LOCK_SH)  # As `is_held` does, for an instant.
        assert not locking.is_held(tmp_path)
        pool.submit(lambda: (time.sleep(0.1), fcntl.flock(looker, fcntl.LOCK_UN)))
        with locking.hold(tmp_path):
            assert locking.is_held(tmp_path)


def test_the_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locking.hold(tmp_path):
        raise ZeroDivisionError
    with locking.hold(tmp_path):
        pass


def test_a_file_system_without_locks_is_an_error(tmp_path, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match="its file system has no locks"), locking.hold(tmp_path):
        pass
