"""Progress bars on a terminal, nothing elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


def count_bar() -> Progress:
    """Returns a bar that counts examples, on stderr; use it as a context manager."""
    return _bar(MofNCompleteColumn())


def byte_bar() -> Progress:
    """Returns a bar that counts bytes and shows their rate, on stderr."""
    return _bar(DownloadColumn(), TransferSpeedColumn())


def _bar(*columns: MofNCompleteColumn | DownloadColumn | TransferSpeedColumn) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
