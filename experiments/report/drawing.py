"""What all pictures of a report share: colours and markers of the criteria, themes, axes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator
from PIL import Image

from experiments.report import tables
from experiments.report.setups import Line
from experiments.shell.pictures import COLOURS, MARKERS, STYLE

WIDTH = 7.5
"""Inches: at 10 points the text is readable on a phone held sideways."""

ORDER = (
    *("ntk_sap", "snip", "grasp", "synflow", "random", "magnitude"),
    *("iterative_snip", "synflow_l2", "force", "erk", "px"),
)
"""Criteria in the order of `COLOURS`: each has its colour and marker in all pictures."""

DASHES: Sequence[Any] = ("-", ":", "-.", (0, (6, 1)), (0, (1, 3)))
"""Of the first, second, ... line of one criterion."""

PUBLISHED: Any = (0, (4, 2))
"""Dashes of published curves."""

GREY = "#8a8a8a"
"""Of what is not ours."""

LIGHT: dict[str, Any] = {"figure.facecolor": "white", "axes.facecolor": "white"}
_INK, _PAPER = "#d8d8d8", "#16181c"
DARK: dict[str, Any] = {
    "figure.facecolor": _PAPER,
    "axes.facecolor": _PAPER,
    "grid.color": "#33373e",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
    ),
}


def png(draw: Callable[[], Figure], theme: dict[str, Any]) -> bytes:
    """Draws a figure in a theme and returns it as PNG."""
    look: Any = {**STYLE, "font.size": 10.5, **theme}
    with matplotlib.rc_context(look):
        drawn, small = io.BytesIO(), io.BytesIO()
        draw().savefig(drawn, format="png", dpi=150)
    # A palette makes the file a third as large, and the page is to be read on phones.
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "png")
    return small.getvalue()


def data_uri(picture: bytes) -> str:
    """Returns a PNG as the address that embeds it."""
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def ink() -> str:
    """The colour of text in the theme that is being drawn in."""
    return matplotlib.rcParams["text.color"]


def colour(criterion: str) -> str:
    """Returns the colour of a criterion; that of the text for the dense network."""
    return ink() if criterion == "dense" else COLOURS[_place(criterion) % len(COLOURS)]


def style(line: Line) -> dict[str, Any]:
    """Returns how a line is drawn: colour and marker by criterion, dashes within one.

    Sanity checks have hollow markers.
    """
    if line.criterion == "dense":
        return {"color": ink(), "linestyle": DASHES[line.place % len(DASHES)], "linewidth": 1.4}
    face = matplotlib.rcParams["axes.facecolor"] if line.is_variant else colour(line.criterion)
    return {
        "color": colour(line.criterion),
        "linestyle": DASHES[line.place % len(DASHES)],
        "linewidth": 1.6,
        "marker": marker(line.criterion),
        "markersize": 6,
        "markerfacecolor": face,
        "markeredgecolor": colour(line.criterion),
    }


def marker(criterion: str) -> str:
    """Returns the marker of a criterion."""
    return MARKERS[_place(criterion) % len(MARKERS)]


def _place(criterion: str) -> int:
    return ORDER.index(criterion) if criterion in ORDER else len(ORDER)


def density_axis(axes: Axes, densities: Iterable[float], *, margin: float = 1.25) -> None:
    """Makes the x axis logarithmic in density, falling to the right, with sparsity on top."""
    known = sorted(set(densities))
    axes.set_xscale("log")
    axes.set_xlim(known[-1] * margin, known[0] / margin)
    rotation = 45 if len(known) > 6 else 0
    texts = [tables.density_text(density) for density in known]
    _ticks(axes.xaxis, known, texts, rotation)
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
