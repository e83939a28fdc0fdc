"""The results as a picture: times against PyTorch's, and rates against the matrix product's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.benchmark.results import Summary
from experiments.shell import pictures

OURS_COLOUR, TORCH_COLOUR = pictures.COLOURS[:2]


@matplotlib.rc_context(pictures.STYLE)
def draw(summaries: Sequence[Summary], title: str) -> Figure:
    """Draws the cases that have a ratio or a rate, one a line, first on top.

    Args:
        summaries: of the cases; there must be one that can be drawn.
        title: what was measured, and where.
    """
    drawn = [summary for summary in summaries if summary.ratio or summary.ours.of_peak is not None]
    figure = Figure(figsize=(9.5, 1.6 + 0.3 * len(drawn)), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    left, right = figure.subplots(1, 2, sharey=True)
    _ratios(left, drawn)
    _rates(right, drawn)
    left.set_yticks(range(len(drawn)), [summary.name for summary in drawn])
    left.set_ylim(len(drawn) - 0.4, -0.6)
    return figure


def _ratios(axes: Axes, summaries: Sequence[Summary]) -> None:
    """Medians, with a bar from quartile to quartile; the line is PyTorch."""
    axes.axvline(1.0, color=TORCH_COLOUR, linewidth=1.5, label="PyTorch")
    for place, summary in enumerate(summaries):
        if summary.ratio is None:
            continue
        median, low, high = dataclasses.astuple(summary.ratio)
        axes.plot([low, high], [place, place], color=OURS_COLOUR, linewidth=2.5, alpha=0.5)
        axes.plot([median], [place], "o", color=OURS_COLOUR, markersize=6)
        axes.annotate(
            f"{median:.2f}", (high, place), (5, 0), textcoords="offset points", va="center"
        )
    axes.set_xlim(left=0)
    axes.margins(x=0.15)
    axes.set(xlabel="time, ours / PyTorch (quartiles over the rounds)")


def _rates(axes: Axes, summaries: Sequence[Summary]) -> None:
    for place, summary in enumerate(summaries):
        sides = ((summary.ours, OURS_COLOUR, -0.18), (summary.torch, TORCH_COLOUR, 0.18))
        for side, colour, shift in sides:
            if side is not None and side.of_peak is not None:
                axes.barh(place + shift, side.of_peak, 0.34, color=colour)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlim(left=0)
    axes.set(xlabel="nominal FLOP/s, of the matrix product's")
    axes.barh(0, 0, color=OURS_COLOUR, label="ours")
    axes.barh(0, 0, color=TORCH_COLOUR, label="PyTorch")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
