"""What all pictures of a report share: colours and markers of the criteria, axes, files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from experiments.report import tables
from experiments.report.setups import Line
from experiments.shell.pictures import COLOURS, MARKERS, STYLE

WIDTH = 7.5
"""Inches: at 10 points the text is readable on a phone held sideways."""

ORDER = (
    *("ntk_sap", "snip", "grasp", "synflow", "random", "magnitude"),
    *("iterative_snip", "synflow_l2", "force", "erk", "px"),
)
"""Criteria in the order of `COLOURS`: a criterion has the same colour in all pictures."""

DASHES: Sequence[Any] = ("-", ":", "-.", (0, (6, 1)), (0, (1, 3)))
"""Of the first, second, ... line of one criterion."""

PUBLISHED: Any = (0, (4, 2))
"""Dashes of published curves."""

INK, GREY, PAPER = "#1c1c1e", "#8a8a8a", "white"
"""Of the dense network, of what is not ours, and of hollow markers."""


class Drawn(NamedTuple):
    """A picture as files."""

    svg: bytes
    png: bytes


def draw(make: Callable[[], Figure]) -> Drawn:
    """Draws a figure in the style of the report."""
    # Without a salt and with a date, the same picture would be another file every time.
    look: Any = {**STYLE, "font.size": 10.5, "svg.hashsalt": "report"}
    with matplotlib.rc_context(look):
        figure, svg, png = make(), io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.savefig(png, format="png", dpi=150)
    return Drawn(svg.getvalue(), png.getvalue())


def colour(criterion: str) -> str:
    """Returns the colour of a criterion."""
    return INK if criterion == "dense" else COLOURS[_place(criterion) % len(COLOURS)]


def marker(criterion: str) -> str:
    """Returns the marker of a criterion."""
    return MARKERS[_place(criterion) % len(MARKERS)]


def _place(criterion: str) -> int:
    return ORDER.index(criterion) if criterion in ORDER else len(ORDER)


def style(line: Line) -> dict[str, Any]:
    """Returns how a line is drawn: colour and marker by criterion, dashes within one.

    Sanity checks have hollow markers.
    """
    dashes = DASHES[line.place % len(DASHES)]
    if line.criterion == "dense":
        return {"color": INK, "linestyle": dashes, "linewidth": 1.4}
    return {
        "color": colour(line.criterion),
        "linestyle": dashes,
        "linewidth": 1.6,
        "marker": marker(line.criterion),
        "markersize": 6,
        "markerfacecolor": PAPER if line.is_variant else colour(line.criterion),
        "markeredgecolor": colour(line.criterion),
    }


def density_axis(axes: Axes, densities: Iterable[float], *, margin: float = 1.25) -> None:
    """Makes the x axis logarithmic in density, falling to the right, with sparsity on top."""
    known = sorted(set(densities))
    axes.set_xscale("log")
    axes.set_xlim(known[-1] * margin, known[0] / margin)
    rotation = 45 if len(known) > 6 else 0
    _ticks(axes.xaxis, known, list(map(tables.density_text, known)), rotation)
    axes.set_xlabel("density: fraction of the prunable weights kept")
    top = axes.secondary_xaxis("top")
    _ticks(top.xaxis, known, [f"{100 * (1 - density):.4g}" for density in known], rotation)
    top.set_xlabel("sparsity (%)")
    top.spines["top"].set_visible(False)


def _ticks(axis: Any, places: Sequence[float], texts: Sequence[str], rotation: int) -> None:
    axis.set_major_locator(FixedLocator(list(places)))
    axis.set_minor_locator(NullLocator())
    axis.set_ticks(list(places), list(texts), rotation=rotation)


def log_axis(axis: Any) -> None:
    """Labels a logarithmic axis with plain numbers, after drawing, unless it is too long."""
    low, high = axis.get_view_interval()
    if high > 500 * low:
        return
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def legend_beside(axes: Axes, **options: Any) -> None:
    """Puts the legend to the right of the axes, where it covers nothing."""
    axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9.5, handlelength=2.6, **options
    )
