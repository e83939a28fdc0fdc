"""One cell of a sweep: the command that carries it out, and how far its run folder has got.

Beside what every run writes (see `run_folder`) the folder of a cell holds

    log.txt      the command, and what it printed; the same again each time that it was resumed
    error.txt    why the cell failed; gone as soon as it is tried again
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments.shell import errors, interruption
from experiments.shell.errors import UserError
from experiments.storage import files, locking, run_folder

State = Literal["new", "interrupted", "running", "failed", "complete"]


class Cell(NamedTuple):
    """A run of the grid."""

    module: str  # The program that carries it out, such as `experiments.cifar`.
    arguments: tuple[str, ...]  # The words after the program's name.
    folder: Path  # The run folder.
    accuracy: str  # What the program calls the test accuracy in summary.json.
    kind: Any = ()  # What cells have in common that are expected to take equally long.
    job: Any = ()  # What cells have in common that use the same compiled programs.

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.folder.name


class Ended(NamedTuple):
    """How the command of a cell ended."""

    cell: Cell
    code: int  # Its exit code; if a signal ended it, the signal's number with a minus.
    seconds: float
    lost: str = ""  # How its process or machine was lost, if it was not by a signal.


class Status(NamedTuple):
    """How far a cell has got."""

    state: State  # `running` if a process is at it.
    accuracy: float | None = None  # On the test images after the last epoch, if complete.
    error: str = ""  # What went wrong, if failed.


def by_job(cells: Iterable[Cell]) -> list[Cell]:
    """Puts cells of the same job one after the other, since a worker keeps only its last job."""
    order: dict[Any, int] = {}
    return sorted(cells, key=lambda cell: order.setdefault(cell.job, len(order)))


def status(cell: Cell) -> Status:
    """Looks into the run folder of a cell."""
    path = cell.folder
    if run_folder.is_complete(path):
        accuracy = run_folder.read_summary(path).get(cell.accuracy)
        if not isinstance(accuracy, int | float):
            raise UserError(f"{path / 'summary.json'} holds no {cell.accuracy}. Restore it")
        return Status("complete", accuracy)
    if locking.is_held(path):
        return Status("running")
    if (path / "error.txt").exists():
        error = (path / "error.txt").read_text(encoding="utf-8", errors="replace")
        return Status("failed", error=error.strip().partition("\n")[0])
    return Status("interrupted" if (path / "config.json").exists() else "new")


def settle(ended: Ended) -> Status:
    """Returns the status of a cell whose command ended; why it failed is written to its folder."""
    found = status(ended.cell)
    stopped = (interruption.EXIT_CODE, interruption.CTRL_C_CODE, -signal.SIGTERM)
    # It is running if the command ended because another program is at it.
    if found.state in ("complete", "running") or ended.code in stopped:
        return Status("interrupted") if found.state == "new" else found
    error = ended.lost or _why(ended)
    try:
        ended.cell.folder.mkdir(parents=True, exist_ok=True)
        files.write_text(ended.cell.folder / "error.txt", error + "\n")
    except OSError as failure:
        if not errors.disk_full(failure):
            raise
    return Status("failed", error=error)


def _why(ended: Ended) -> str:
    if ended.code < 0:
        name = signal.Signals(-ended.code).name
        return f"ended by {name}{': out of memory?' if name == 'SIGKILL' else ''}"
    path = ended.cell.folder / "log.txt"
    if ended.code == 0:
        return (
            f"its command ended well, and {path.parent} holds no results: all machines must see "
            "the same files there"
        )
    log = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    last = next((line for line in reversed(log) if line.strip()), f"exit code {ended.code}")
    return last.strip().removeprefix("error: ")
