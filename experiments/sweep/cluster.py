"""Tasks on the machines of a Ray cluster, in the manner of `workers`: `sweep --cluster`.

`ray start` makes the cluster, on one machine or many. They must have this program and the same
Python at the same place, and share the file system that the results go to. Ray (the extra
`cluster`) is imported only here. This module imports nothing of JAX: a worker sets the environment
first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import secrets
import signal
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.processes.workers import STOP_SECONDS, Outcome
from experiments.shell import interruption
from experiments.shell.errors import Preempted, UserError

CHECK_SECONDS = 120.0
"""How long each machine has to look into the folder of the results."""
LOOK_SECONDS = 5.0
"""Between two looks at which machines there are."""
INHERITED = ("JAX_", "XLA_", "TFDS_", "LIBTPU_")
"""What variables of the environment begin with that tasks get from the program that began them."""


class Needs(NamedTuple):
    """What each task takes of a machine; fractions of a GPU are shared by several tasks."""

    cpus: float = 1.0
    gpus: float = 0.0
    tpus: float = 0.0

    def resources(self) -> dict[str, float]:
        """Returns them by Ray's names, without those that are 0."""
        named = {"CPU": self.cpus, "GPU": self.gpus, "TPU": self.tpus}
        return {name: number for name, number in named.items() if number}


class _Try(NamedTuple):
    task: Any
    number: int
    started: float


# -- The cluster ---------------------------------------------------------------------------------


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Connects to a cluster that runs.

    Args:
        address: "auto" for that of this machine, or of RAY_ADDRESS; else HOST:PORT.

    Raises:
        UserError: Ray is not installed, or no cluster is there.
    """
    ray = _ray()
    sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--cluster {address}: no Ray cluster answers ({reason}). Start it by `ray start "
            "--head`, and on each further machine by the command that this prints"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, sigterm)  # Ray has it end the program without a word.
    try:
        yield
    except SystemError as error:
        # What Ray's compiled code makes of a handler of SIGTERM or Ctrl-C that raises.
        if isinstance(error.__cause__, Preempted | KeyboardInterrupt):
            raise error.__cause__ from None
        raise
    finally:
        ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--cluster needs Ray, which is not installed: pip install 'ntksap_jax[cluster]', on "
            "each machine"
        ) from error
    return ray


def num_at_once(needs: Needs, machines: Sequence[Mapping[str, Any]] | None = None) -> int:
    """Returns how many tasks the machines that are there can carry out at once."""
    machines = _machines() if machines is None else machines
    return sum(_fits(machine, needs) for machine in machines)


def _fits(machine: Mapping[str, Any], needs: Needs) -> int:
    has, wanted = machine["Resources"], needs.resources()
    return min(int(has.get(name, 0.0) / number + 1e-9) for name, number in wanted.items())


def _machines() -> list[Any]:
    return [machine for machine in _ray().nodes() if machine["Alive"]]


def check(folder: Path, needs: Needs) -> None:
    """Has each machine that can carry out a task read and write a file in the folder.

    Raises:
        UserError: there is no such machine, or one that does not see the folder; it is named.
    """
    machines = _machines()
    able = [machine for machine in machines if _fits(machine, needs)]
    if not able:
        raise UserError(
            f"no machine of the cluster has what a cell takes, {_describe(needs.resources())}; "
            f"there are: {'; '.join(map(_describe_machine, machines))}. Change --cpus-per-cell, "
            "--gpus-per-cell or --tpus-per-cell"
        )
    token = secrets.token_hex(8)
    path = folder / f".sweep-{token}"
    try:
        path.write_text(token)
        answers = {_ask(machine, path): machine for machine in able}
        for answer, machine in answers.items():
            why = _why_not(answer, path, token)
            if why:
                raise UserError(
                    f"the machine {_describe_machine(machine)} cannot work in {folder.absolute()} "
                    f"({why}). It must be the same folder on all machines, with this program and "
                    "the same Python: mount it there, or choose another --runs-dir"
                )
    finally:
        for left in folder.glob(f"{path.name}*"):
            left.unlink(missing_ok=True)


def _ask(machine: Mapping[str, Any], path: Path) -> Any:
    ray = _ray()
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        machine["NodeID"], soft=False
    )
    task = ray.remote(_answer).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
    return task.remote(str(Path.cwd()), str(path))


def _answer(folder: str, path: str) -> str:
    """On a machine: copies the token into a file of its own, and returns that file's name."""
    os.chdir(folder)
    answer = Path(f"{path}-{secrets.token_hex(8)}")
    answer.write_text(Path(path).read_text())
    return answer.name


def _why_not(answer: Any, path: Path, token: str) -> str:
    ray = _ray()
    try:
        name = ray.get(answer, timeout=CHECK_SECONDS)
        if path.with_name(name).read_text() != token:
            return "what it writes there is not what is read here"
    except FileNotFoundError as error:
        return str(error.strerror)
    except ray.exceptions.GetTimeoutError:
        return f"no answer within {CHECK_SECONDS:.0f} s"
    except ray.exceptions.RayError as error:
        return _reason(error)
    return ""


def _describe(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{number:g} {name}" for name, number in resources.items())


def _describe_machine(machine: Mapping[str, Any]) -> str:
    has = {name: machine["Resources"].get(name, 0.0) for name in ("CPU", "GPU", "TPU")}
    address = f"{machine['NodeManagerHostname']} ({machine['NodeManagerAddress']})"
    return f"{address} with {_describe({k: v for k, v in has.items() if v}) or 'nothing'}"


# -- Tasks ---------------------------------------------------------------------------------------


def run(
    tasks: Sequence[Any],
    work: Callable[[Any], Any],
    *,
    needs: Needs,
    retries: int,
    group: Callable[[Any], Hashable] = lambda task: None,
    on_start: Callable[[Any], None] = lambda task: None,
    on_lost: Callable[[Any, str], None] = lambda task, why: None,
) -> Generator[Outcome]:
    """Carries out tasks on the cluster; yields each outcome as it comes.

    Close the iterator (`contextlib.closing`), or run it to its end: what is at work then is told to
    save and end, and ended if it does not.

    Args:
        tasks: what to do; they are pickled, as are the results.
        work: `work(task) -> result`, a function of a module, which the machines import.
        needs: what each task takes of a machine.
        retries: how many times a task is tried again that was lost with its process or machine.
        group: tasks of the same group share something that is costly to prepare: they are begun
            one after the other, for a process takes several.
        on_start: `on_start(task)` is called when a task is handed out for the first time.
        on_lost: `on_lost(task, why)` is called when one is lost, before it is tried again.
    """
    ray = _ray()
    taken = needs.resources()
    # Retries are ours: Ray's own are silent, and without end if a machine runs out of memory.
    carry_out = ray.remote(_carry_out).options(
        num_cpus=taken.pop("CPU", 0), num_gpus=taken.pop("GPU", 0), resources=taken, max_retries=0
    )
    place = str(Path.cwd()), _environment(needs)
    pending = [_Try(task, 1, 0.0) for task in in_groups(tasks, group)]
    running: dict[Any, _Try] = {}
    try:
        while pending or running:
            while pending and len(running) < max(1, num_at_once(needs)):
                each = pending.pop(0)
                call = ray.cloudpickle.dumps((work, each.task))
                running[carry_out.remote(*place, call)] = each._replace(started=time.monotonic())
                if each.number == 1:
                    on_start(each.task)
            for reference in ray.wait(list(running), timeout=LOOK_SECONDS)[0]:
                each = running.pop(reference)
                outcome = _outcome(reference, each)
                if outcome.lost and each.number <= retries:
                    on_lost(each.task, outcome.lost)
                    pending.insert(0, each._replace(number=each.number + 1))
                else:
                    yield outcome
    finally:
        _stop(list(running))


def in_groups(tasks: Sequence[Any], group: Callable[[Any], Hashable]) -> list[Any]:
    """Returns the tasks with those of a group one after the other.

    >>> in_groups(["a1", "b1", "a2", "b2"], lambda task: task[0])
    ['a1', 'a2', 'b1', 'b2']
    """
    order: dict[Hashable, list[Any]] = {}
    for task in tasks:
        order.setdefault(group(task), []).append(task)
    return [task for members in order.values() for task in members]


def _outcome(reference: Any, each: _Try) -> Outcome:
    ray = _ray()
    result, lost, preempted = None, "", False
    try:
        result, preempted = ray.get(reference)
        lost = "its process was preempted" if preempted else ""
    except ray.exceptions.RayError as error:
        lost = f"its process or machine was lost ({_reason(error)})"
    times = f", {each.number} times" if each.number > 1 and lost else ""
    return Outcome(each.task, result, lost + times, time.monotonic() - each.started, preempted)


def _reason(error: Any) -> str:
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        error = cause
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _stop(references: Sequence[Any]) -> None:
    """Has what runs save and end; ends what does not."""
    ray = _ray()
    for reference in references:
        ray.cancel(reference)
    if references:
        _, left = ray.wait(references, num_returns=len(references), timeout=STOP_SECONDS)
        for reference in left:
            ray.cancel(reference, force=True)


def _environment(needs: Needs) -> dict[str, str]:
    """Returns the variables that a task gets."""
    found = {name: value for name, value in os.environ.items() if name.startswith(INHERITED)}
    # The number of threads that XLA takes. Ray reserves cores, and keeps nobody to them.
    found["NPROC"] = str(max(1, round(needs.cpus)))
    if 0 < needs.gpus < 1:
        found.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 * needs.gpus:.3f}")
    return found


# -- On a machine --------------------------------------------------------------------------------


def _carry_out(folder: str, environment: Mapping[str, str], call: bytes) -> tuple[Any, bool]:
    """Carries out a task; returns its result, and whether it was told to save and end instead."""
    os.environ.update(environment)
    os.chdir(folder)
    before = {
        # From the system before it takes the machine away, and from `ray.cancel`.
        signal.SIGTERM: signal.signal(signal.SIGTERM, interruption.stop),
        signal.SIGINT: signal.signal(signal.SIGINT, _terminate),
    }
    try:
        work, task = pickle.loads(call)
        return work(task), False
    except Preempted:
        return None, True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
