"""Cells on the machines of a Ray cluster: `sweep --cluster`.

`ray start` makes the cluster, on one machine or many. They must have this program and the same
Python at the same place, and share the file system that the results go to. What runs where, and
what is tried again, is Ray's affair. Ray (the extra `cluster`) is imported only here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from experiments.shell import interruption
from experiments.shell.configuration import configuration
from experiments.shell.errors import Preempted, UserError
from experiments.sweep import worker
from experiments.sweep.cells import Cell, Ended
from experiments.sweep.worker import STOP_SECONDS

INHERITED = ("JAX_", "XLA_", "TFDS_", "LIBTPU_")
"""What variables of the environment begin with that cells get from the sweep."""


def _whole_or_a_fraction(number: float) -> float:
    if number > 1 and number != int(number):
        raise ValueError("expected a whole number or a fraction of one")
    return number


Amount = Annotated[float, Field(ge=0, le=1e6), AfterValidator(_whole_or_a_fraction)]


@configuration
class Needs:
    """What each cell takes of a machine."""

    cpus_per_cell: Annotated[Amount, Field(gt=0)] = 1.0
    """With --cluster: CPU cores that a cell takes of a machine."""
    gpus_per_cell: Amount = 0.0
    """With --cluster: GPUs likewise; with 0.5, two cells share one."""
    tpus_per_cell: Amount = 0.0
    """With --cluster: TPU chips likewise."""

    def resources(self) -> dict[str, float]:
        """Returns them by Ray's names, without those that are 0."""
        named = {"CPU": self.cpus_per_cell, "GPU": self.gpus_per_cell, "TPU": self.tpus_per_cell}
        return {name: number for name, number in named.items() if number}


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Connects to a cluster that runs: `auto`, on this machine or at RAY_ADDRESS, or HOST:PORT.

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
            "--cluster needs Ray, which is not installed: pip install -e '.[cluster]', on "
            "each machine"
        ) from error
    return ray


def num_at_once(needs: Needs) -> int:
    """Returns how many cells the machines can carry out at once.

    Raises:
        UserError: none has what a cell takes: Ray would wait for such a machine for ever.
    """
    machines = [machine["Resources"] for machine in _ray().nodes() if machine["Alive"]]
    number = sum(_room(machine, needs.resources()) for machine in machines)
    if not number:
        there = "; ".join(_describe(machine) for machine in machines)
        raise UserError(
            f"no machine of the cluster has what a cell takes, {_describe(needs.resources())}; "
            f"there are: {there}. Change --cpus-per-cell, --gpus-per-cell or --tpus-per-cell"
        )
    return number


def _room(machine: Mapping[str, float], taken: Mapping[str, float]) -> int:
    return min(int(machine.get(name, 0.0) / number + 1e-9) for name, number in taken.items())


def _describe(resources: Mapping[str, float]) -> str:
    named = {name: resources.get(name, 0.0) for name in ("CPU", "GPU", "TPU")}
    return ", ".join(f"{number:g} {name}" for name, number in named.items() if number) or "nothing"


def run(cells: Sequence[Cell], *, needs: Needs, retries: int) -> Generator[Ended]:
    """Carries out cells on the cluster; yields how each ended as it ends.

    Close the iterator (`contextlib.closing`), or run it to its end: what is at work then is told to
    save and end, and ended if it does not. A cell that was lost with its process or machine
    is tried again up to `retries` times.
    """
    ray = _ray()
    tpus = {"TPU": needs.tpus_per_cell} if needs.tpus_per_cell else {}
    run_cell = ray.remote(worker.run_for_ray).options(
        num_cpus=needs.cpus_per_cell,
        num_gpus=needs.gpus_per_cell,
        resources=tpus,
        max_retries=retries,
        retry_exceptions=[worker.Stopped],
    )
    place = _environment(needs), str(Path.cwd())
    left = {
        run_cell.remote(*place, cell.module, cell.arguments, str(cell.folder)): cell
        for cell in cells
    }
    try:
        while left:
            [reference], _ = ray.wait(list(left))
            yield _ended(reference, left.pop(reference))
    finally:
        _stop(list(left))


def _ended(reference: Any, cell: Cell) -> Ended:
    ray = _ray()
    try:
        return Ended(cell, *ray.get(reference))
    except worker.Stopped:
        return Ended(cell, interruption.EXIT_CODE, 0.0)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().partition("\n")[0][:200]
        lost = f"its process or machine was lost ({type(error).__name__}: {reason})"
        return Ended(cell, 1, 0.0, lost)


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
    """Returns the variables that a cell gets."""
    variables = {name: value for name, value in os.environ.items() if name.startswith(INHERITED)}
    # The number of threads that XLA takes. Ray reserves cores, and keeps nobody to them.
    variables["NPROC"] = str(max(1, round(needs.cpus_per_cell)))
    if 0 < needs.gpus_per_cell < 1:
        variables.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 * needs.gpus_per_cell:.3f}")
    return variables
