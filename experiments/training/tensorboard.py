"""The rows of a table as TensorBoard events: `tensorboard --logdir runs` shows their curves.

Those of `metrics.csv` lie in `tensorboard/metrics` of the run folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from experiments.shell.errors import UserError
from experiments.storage.run_folder import Row


def check(wanted: bool) -> None:
    """Raises a `UserError` if events are wanted and the library that writes them is missing."""
    if wanted and importlib.util.find_spec("tensorboardX") is None:
        raise UserError("--tensorboard needs tensorboardX: run `pip install tensorboardX`")


@contextlib.contextmanager
def events(
    table: Path, rows: Sequence[Row], *, by: str, wanted: bool
) -> Iterator[Callable[[Row], None]]:
    """Writes rows as events; yields what adds a further row.

    A session that resumes writes all rows again, in the place of what is there, so that none occurs
    twice: rows after the last checkpoint were written by a session that was interrupted.

    Args:
        table: file of the table; the events go to a folder beside it.
        rows: those that are complete.
        by: the column that counts, `"step"` or `"round"`.
        wanted: without it nothing is written.
    """
    if not wanted:
        yield lambda row: None
        return
    from tensorboardX import SummaryWriter

    folder = table.parent / "tensorboard" / table.stem
    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:

        def add(row: Row) -> None:
            for name, value in row.items():
                if name != by and not isinstance(value, str):
                    writer.add_scalar(name.replace(" ", "_"), value, row[by])
            writer.flush()

        for row in rows:
            add(row)
        yield add
