"""Who is there: before JAX joins processes they report to process 0, so that it can name the rest.

When processes are missing, JAX's own start ends in a stack trace that does not say which. They
report at the port that JAX will listen at, a line each way:

    ntksap_jax 2 of 4      "I am process 2 of 4", to process 0
    go                     all are there
    stop REASON            they will not be
"""

from __future__ import annotations

import contextlib
import errno
import re
import select
import socket
import time
from collections.abc import Iterable

from experiments.shell.errors import UserError

_SECONDS_FOR_A_LINE = 5.0
_SECONDS_BETWEEN_TRIES = 0.2


def hold(address: str, number: int, count: int, *, seconds: float) -> None:
    """Returns as soon as all processes have called this.

    Args:
        address: host and port of process 0, the same in all processes.
        number: of this process.
        count: of processes.
        seconds: to wait for the others.

    Raises:
        UserError: the processes that did not come in time, or contradict each other.
    """
    host, _, port = address.rpartition(":")
    if number == 0:
        _call(int(port), count, seconds)
    else:
        _answer(host.strip("[]"), int(port), number, count, seconds)


def _call(port: int, count: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    came: list[socket.socket] = []
    here: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        try:
            with _listen(port, deadline) as server:
                while len(here) < count - 1:
                    server.settimeout(max(0.0, deadline - time.monotonic()) or 1e-3)
                    try:
                        came.append(stack.enter_context(server.accept()[0]))
                    except TimeoutError:
                        missing = [str(each) for each in range(1, count) if each not in here]
                        raise UserError(
                            f"--distributed: {_list(missing)} of {count} did not come within "
                            f"{seconds:g} s. Look at their output, or for why they did not start; "
                            f"they must reach port {port} of {socket.gethostname()}. "
                            "--start-seconds gives them longer"
                        ) from None
                    number = _read_number(came[-1], count)
                    # Whoever went away, to be started again or not, is not here.
                    here = {each: there for each, there in here.items() if not _is_gone(there)}
                    if number in here:
                        raise UserError(
                            f"--distributed: two processes say that they are process {number}"
                        )
                    if number is not None:
                        here[number] = came[-1]
        except UserError as error:
            _tell(came, f"stop {error}")
            raise
        # Now the port is free for JAX.
        _tell(here.values(), "go")


def _listen(port: int, deadline: float) -> socket.socket:
    while True:
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            return socket.create_server(("", port))
        except OSError as error:
            # What ran here before may be about to end.
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise UserError(
                    f"--distributed: cannot listen at port {port}: {error.strerror}. Choose "
                    "another in --coordinator, or by JAX_COORDINATOR_PORT on Slurm and Cloud TPU"
                ) from error
            time.sleep(_SECONDS_BETWEEN_TRIES)


def _read_number(connection: socket.socket, count: int) -> int | None:
    """Returns the number of the process that has come; None for something else."""
    connection.settimeout(_SECONDS_FOR_A_LINE)
    try:
        line = connection.makefile("rb").readline(100)
    except OSError:
        return None
    match = re.fullmatch(rb"ntksap_jax (\d{1,9}) of (\d{1,9})\n", line)
    if match is None:
        return None
    number, claimed = int(match[1]), int(match[2])
    if claimed != count or not 0 < number < count:
        raise UserError(
            f"--distributed: a process says that it is process {number} of {claimed}, but process "
            f"0 was told that they are {count}"
        )
    return number


def _is_gone(connection: socket.socket) -> bool:
    # A process says nothing more, so there is something to read only when it closed.
    return bool(select.select([connection], [], [], 0)[0])


def _tell(connections: Iterable[socket.socket], line: str) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.sendall(line.encode() + b"\n")


def _answer(host: str, port: int, number: int, count: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    reason = "it did not say that all are there"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), min(left, _SECONDS_FOR_A_LINE)) as there:
                there.sendall(b"ntksap_jax %d of %d\n" % (number, count))
                # It is there, started at most now, and knows who is missing: it has the last word.
                there.settimeout(seconds + _SECONDS_FOR_A_LINE)
                line = there.makefile("rb").readline(2000)
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            if line == b"go\n":
                return
            if line.startswith(b"stop "):
                raise UserError(line.removeprefix(b"stop ").decode(errors="replace").strip())
        time.sleep(_SECONDS_BETWEEN_TRIES)
    raise UserError(
        f"--distributed: process {number} of {count} waited {seconds:g} s for process 0 at "
        f"{host}:{port}: {reason}. Look at the output of process 0, or for why it did not start"
    )


def _list(numbers: list[str]) -> str:
    if len(numbers) == 1:
        return f"process {numbers[0]}"
    return f"processes {', '.join(numbers[:-1])} and {numbers[-1]}"
