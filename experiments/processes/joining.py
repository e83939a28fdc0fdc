"""How several processes become one program, and end together.

What goes wrong in one process ends all of them within seconds, and what no process can report,
because it is gone, within a time limit: nobody waits for the dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import NoReturn

import jax
from jax._src.clusters import ClusterEnv  # What JAX knows of Slurm and the others; not public.

from experiments.processes import distributed, roll_call
from experiments.processes.config import ProcessConfig
from experiments.shell import interruption
from experiments.shell.errors import UserError

HEARTBEAT_SECONDS = 60
"""A process that was not heard of for so long is taken for dead, and JAX aborts the others."""

FAREWELL_SECONDS = 5
"""How long a process that fails waits for the others to hear of it."""

_FAILURE = "ntksap_jax/failure"


@contextlib.contextmanager
def joined(options: ProcessConfig) -> Iterator[None]:
    """Joins this process with the others, if that is what the options say.

    A process that ends in another way than by success or preemption, on which all of them agree,
    tells the others, which then end with the same exit code.

    Raises:
        UserError: not all processes came in time, or they cannot find each other.
    """
    if not options.distributed:
        yield
        return
    _initialize(options)
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=[ended], name="watch", daemon=True)
    watch.start()

    def leave() -> None:
        ended.set()
        watch.join()
        # Waits for the others: who leaves earlier is taken for dead.
        jax.distributed.shutdown()

    try:
        yield
    except SystemExit as stop:
        if stop.code not in (0, None, interruption.EXIT_CODE):
            code = stop.code if isinstance(stop.code, int) else 1
            ended.set()
            _end_all(code, str(stop.__context__ or "see its output"))
        leave()
        raise
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, jax.errors.JaxRuntimeError):
            print(
                f"error: {distributed.me()} failed in work with the others. If one of them was "
                "killed, start them all again; --resume goes on",
                file=sys.stderr,
            )
        ended.set()
        _end_all(1, f"{type(error).__name__}: {error}")
    else:
        leave()


# -- The start -----------------------------------------------------------------------------------


def _initialize(options: ProcessConfig) -> None:
    address, count, number, devices = _whereabouts(options)
    roll_call.hold(address, number, count, seconds=options.start_seconds)
    # One program after the other: two at once could mix up their exchanges on CPU.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.distributed.initialize(
        address,
        count,
        number,
        devices,
        cluster_detection_method="deactivate",
        initialization_timeout=options.start_seconds,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )


def _whereabouts(options: ProcessConfig) -> tuple[str, int, int, Sequence[int] | None]:
    """Returns address of process 0, number of processes, that of this one, and its devices.

    What the flags leave open JAX finds in the environment: on Slurm one device a process, otherwise
    all there are.
    """
    address = options.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count, number = options.num_processes, options.process_id
    local = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    devices: Sequence[int] | None
    try:
        devices = [int(each) for each in local.split(",")] if local else None
        # Whoever says it all wants nothing guessed.
        if address is None or count is None or number is None:
            address, count, number, devices = ClusterEnv.auto_detect_unset_distributed_params(
                address, count, number, devices, None, options.start_seconds
            )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--distributed: {error}") from error
    if address is None or count is None or number is None:
        raise UserError(
            "--distributed: this is no job of Slurm, Open MPI, Cloud TPU or GKE, which would say "
            "where the processes are. Give --coordinator HOST:PORT, --num-processes and "
            "--process-id, all three"
        )
    return address, count, number, devices


# -- The end -------------------------------------------------------------------------------------


def _watch(ended: threading.Event) -> None:
    """Ends this process when another one has failed; it may be waiting for that in vain."""
    while not ended.wait(1.0):
        try:
            failure = json.loads(distributed.store().key_value_try_get(_FAILURE))
        except jax.errors.JaxRuntimeError:
            continue  # Nobody failed. If the leader is gone, JAX itself ends this process.
        if ended.is_set() or failure["process"] == distributed.process_id():
            return
        print(
            f"error: {distributed.me()} ends because process {failure['process']} on "
            f"{failure['host']} failed: {failure['reason']}",
            file=sys.stderr,
        )
        _exit(failure["code"])


def _end_all(code: int, reason: str) -> NoReturn:
    """Tells the other processes to end, and ends this one."""
    failure = {
        "process": distributed.process_id(),
        "host": socket.gethostname(),
        "code": code,
        "reason": " ".join(reason.split())[:1000],
    }
    # The first to fail is the one that the others hear of.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        distributed.store().key_value_set(_FAILURE, json.dumps(failure))
    _exit(code)


def _exit(code: int) -> NoReturn:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        distributed.store().wait_at_barrier("ntksap_jax/farewell", 1000 * FAREWELL_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    # Python's own way out would wait for programs on the devices that wait for other processes.
    os._exit(code)
