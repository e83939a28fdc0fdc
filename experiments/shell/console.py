"""What the person at the keyboard sees: the plan, the progress, the summary."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

BETWEEN_COLUMNS = 3
"""Characters of a table between two of its columns."""

LINE_EVERY = 5.0
"""Seconds, at least, between two lines that stay on the screen (the last one always does)."""

SILENT_FOR = 30.0
"""Seconds without a line after which, without a terminal, the progress itself gets one."""


def open_console(*, quiet: bool = False) -> Console:
    """Makes the console for standard output; without a terminal it writes plain lines."""
    console = Console(highlight=False, quiet=quiet)
    if not console.is_terminal:
        console = Console(highlight=False, quiet=quiet, width=120, color_system=None)
    return console


def show_plan(console: Console, title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Prints what is about to be done, a line an item."""
    table = Table(
        title=title, box=None, show_header=False, title_justify="left", title_style="bold"
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, escape(value))
    console.print(table)
    console.print()


def show_table(
    console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Prints a table whose first column is text and whose others are numbers.

    Columns that do not fit go below, beside the first one again: no number is cut.
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) + BETWEEN_COLUMNS for column in columns]
    if sum(widths) >= console.width:  # Then names are broken at their blanks.
        widths = [max(map(len, (*n.split(), *cells))) + BETWEEN_COLUMNS for n, *cells in columns]
    left = list(range(1, len(columns)))
    while left:
        shown = [0, left.pop(0)]
        while left and sum(widths[index] for index in (*shown, left[0])) < console.width:
            shown.append(left.pop(0))
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for index in shown:
            justify: Any = "right" if index else "left"
            width = widths[index] - BETWEEN_COLUMNS
            table.add_column(header[index], justify=justify, width=width)
        for row in rows:
            table.add_row(*(row[index] for index in shown))
        console.print(table)
        title = ""


class Tracker(NamedTuple):
    """How work reports on itself."""

    advance: Callable[[], None]  # `advance()`, called when a unit is finished.
    # `line(text)`, something worth keeping on the screen: printed unless the last line was printed
    # a moment ago.
    line: Callable[[str], None]


@contextmanager
def track(
    console: Console, description: str, *, done: int = 0, total: int, unit: str
) -> Iterator[Tracker]:
    """Shows progress: a bar with the time left on a terminal, lines now and then elsewhere.

    Args:
        console: where to.
        description: what goes on, such as `"Pruning"`.
        done: units that an earlier session finished.
        total: number of units in all.
        unit: one of them, such as `"round"`.
    """
    count, last_line = done, -math.inf
    # The first unit includes compilation: rate and time left are measured from its end on.
    first_end = math.inf

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn(unit + "s"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(description, total=total, completed=done)

        def show(text: str) -> None:
            nonlocal last_line
            console.print(text, soft_wrap=True)
            last_line = time.monotonic()

        def advance() -> None:
            nonlocal count, first_end
            now = time.monotonic()
            count += 1
            progress.advance(task)
            if count == done + 1:
                first_end = now
            elif not console.is_terminal and now - max(last_line, first_end) >= SILENT_FOR:
                rate = (count - done - 1) / (now - first_end)
                left = duration((total - count) / rate)
                show(f"{description}: {unit} {count}/{total}, {_rate(rate, unit)}, {left} left")

        def line(text: str) -> None:
            if time.monotonic() - last_line >= LINE_EVERY or count == total:
                show(text)

        yield Tracker(advance, line)


def _rate(per_second: float, unit: str) -> str:
    return f"{per_second:.1f} {unit}s/s" if per_second >= 1 else f"{1 / per_second:.1f} s/{unit}"


def plural(number: float, noun: str) -> str:
    """Returns `1 epoch`, `2 epochs`."""
    return f"{number:g} {noun}" if number == 1 else f"{number:g} {noun}s"


def duration(seconds: float) -> str:
    """Returns seconds as people say them.

    >>> duration(8.25), duration(192), duration(7500)
    ('8.2 s', '3 min 12 s', '2 h 05 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
