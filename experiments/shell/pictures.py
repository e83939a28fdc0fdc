"""Pictures of a run: what the search did, what it left of each layer, how training went."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

Row = Mapping[str, Any]

COLOURS = (
    *("#1f5fa8", "#d1600a", "#5b8c2a", "#8a4fa3", "#7a7a7a", "#e0a000"),
    *("#aa2244", "#2fb5c7", "#d6609b", "#8c5a2b", "#2fa874", "#6f86ff"),
)
"""In order of use. Dark and light enough for either background; the later ones look alike to some
eyes, so that lines need MARKERS too."""
MARKERS = ("o", "^", "D", "P", "X", "s", "v", "h", ">", "<", "*", "p")
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


WITH_TRAINING = 2
"""Runs up to which training is drawn beside test; of more, the lines could not be told apart."""


@matplotlib.rc_context(STYLE)
def training_curves(runs: Mapping[str, Sequence[Row]], title: str) -> Figure:
    """Draws loss and accuracy by epoch, from rows of metrics.csv by the name of the run.

    Of one or two runs, training is drawn too, dashed.
    """
    figure, (left, right) = new_figure(title, columns=2)
    for index, (name, rows) in enumerate(runs.items()):
        epochs = [row["epoch"] for row in rows]
        marker = MARKERS[index % len(MARKERS)]
        style: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "marker": marker}
        label = f"{name}: {rows[-1]['test_accuracy']:.1%}"
        for axes, quantity in ((left, "loss"), (right, "accuracy")):
            values = [row[f"test_{quantity}"] for row in rows]
            axes.plot(epochs, values, label=label, linewidth=1.8, markersize=4, **style)
            if len(runs) <= WITH_TRAINING:
                values = [row[f"train_{quantity}"] for row in rows]
                axes.plot(epochs, values, "--", linewidth=1, markersize=4, alpha=0.7, **style)
    left.set(xlabel="epoch", ylabel="test cross-entropy (nats)")
    log_scale(left)
    right.set(xlabel="epoch", ylabel="test accuracy")
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(runs) <= WITH_TRAINING:
        right.plot([], [], "--", color="black", linewidth=1, label="training (augmented)")
    right.legend(loc="lower right")
    return figure


@matplotlib.rc_context(STYLE)
def layer_densities(runs: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Draws the fraction of weights kept in each layer, by path, first layer on top."""
    layers = list(next(iter(runs.values())))
    height = max(2.5, 1.0 + 0.19 * len(layers) * (0.6 + 0.4 * len(runs)))
    figure, (axes,) = new_figure(title, columns=1, height=height)
    thickness = 0.8 / len(runs)
    for index, (name, densities) in enumerate(runs.items()):
        places = np.arange(len(layers)) + (index - (len(runs) - 1) / 2) * thickness
        widths, colour = [densities[layer] for layer in layers], COLOURS[index % len(COLOURS)]
        axes.barh(places, widths, thickness, color=colour, label=name)
    name_layers(axes, layers, xlabel="density: fraction of the layer's weights kept")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    if len(runs) > 1:
        axes.legend(loc="best")
    return figure


@matplotlib.rc_context(STYLE)
def search_rounds(rows: Sequence[Row], title: str) -> Figure:
    """Draws the threshold of each row of search.csv, and the trace where it was estimated."""
    quantities = {"threshold": "lowest score kept"}
    if "trace" in rows[0]:
        quantities["trace"] = "estimated trace of the NTK"
    figure, all_axes = new_figure(title, columns=len(quantities))
    for axes, (quantity, label) in zip(all_axes, quantities.items(), strict=True):
        values = [row[quantity] for row in rows]
        axes.plot([row["round"] for row in rows], values, "o-", color=COLOURS[0], markersize=3.5)
        axes.set(xlabel="round", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if quantity == "trace":
            axes.set_ylim(bottom=0)
            axes.ticklabel_format(axis="y", scilimits=(-3, 3), useMathText=True)
        elif min(values) > 0:  # It changes by about the same factor every round.
            log_scale(axes)
    return figure


def name_layers(axes: Axes, layers: Collection[str], *, xlabel: str) -> None:
    """Names the bars of the layers, first layer on top."""
    axes.set_yticks(range(len(layers)), [layer.removesuffix("/kernel") for layer in layers])
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set(xlabel=xlabel)
    axes.grid(axis="y", visible=False)


def new_figure(title: str, *, columns: int, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """Makes a figure with a title and axes side by side."""
    figure = Figure(figsize=(8.0, height), layout="constrained")
    figure.suptitle(textwrap.fill(title, 95), fontsize=11, x=0.01, ha="left")
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def log_scale(axes: Axes) -> None:
    """Makes the y axis logarithmic, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
