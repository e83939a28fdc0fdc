"""What the pictures of a report share: colours and markers of the criteria, and axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.report.setups import Line, density_text
from experiments.shell.pictures import COLOURS, MARKERS

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


def stack(heights: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """Makes a figure of panels of these heights in inches, one above the other."""
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)
    return figure, list(panels[:, 0])


def colour_and_marker(criterion: str) -> tuple[str, str]:
    """Returns the colour and the marker of a criterion."""
    place = ORDER.index(criterion) if criterion in ORDER else len(ORDER)
    return COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]


def style(line: Line) -> dict[str, Any]:
    """Returns how a line is drawn: colour and marker by criterion, dashes within one.

    Sanity checks have hollow markers.
    """
    dashes = DASHES[line.place % len(DASHES)]
    if line.criterion == "dense":
        return {"color": INK, "linestyle": dashes, "linewidth": 1.4}
    colour, marker = colour_and_marker(line.criterion)
    return {
        "color": colour,
        "linestyle": dashes,
        "linewidth": 1.6,
        "marker": marker,
        "markersize": 6,
        "markerfacecolor": PAPER if line.is_variant else colour,
        "markeredgecolor": colour,
    }


def density_axis(axes: Axes, densities: Iterable[float], *, margin: float = 1.25) -> None:
    """Makes the x axis logarithmic in density, falling to the right, with sparsity on top."""
    known = sorted(set(densities))
    axes.set_xscale("log")
    axes.set_xlim(known[-1] * margin, known[0] / margin)
    axes.set_xlabel("density: fraction of the prunable weights kept")
    top = axes.secondary_xaxis("top")
    top.set_xlabel("sparsity (%)")
    top.spines["top"].set_visible(False)
    for place, texts in (
        (axes, list(map(density_text, known))),
        (top, [f"{100 * (1 - density):.4g}" for density in known]),
    ):
        place.set_xticks(known, texts, rotation=45 if len(known) > 6 else 0)
        place.xaxis.set_minor_locator(NullLocator())


def legend_beside(axes: Axes, **options: Any) -> None:
    """Puts the legend to the right of the axes, where it covers nothing."""
    axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9.5, handlelength=2.6, **options
    )
