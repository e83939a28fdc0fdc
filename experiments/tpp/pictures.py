"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.shell.pictures import COLOURS, STYLE, Row, name_layers, new_figure


@matplotlib.rc_context(STYLE)
def regularisation(rows: Sequence[Row], title: str) -> Figure:
    """Draws penalty and sizes of the filters over the steps; of the rows of regularise.csv."""
    has_sizes = "kept_size" in rows[0]
    figure, all_axes = new_figure(title, columns=1 + has_sizes)
    steps = [row["step"] for row in rows]

    def plot(axes: Axes, column: str, *style: str, **look: Any) -> None:
        values = np.array([row[column] for row in rows], float)
        # Without zeros, which a logarithmic axis cannot show.
        axes.plot(steps, np.where(values > 0, values, np.nan), *style, **look)

    plot(all_axes[0], "penalty", color=COLOURS[0], label="penalty")
    plot(all_axes[0], "strength", "--", color=COLOURS[4], label="strength")
    all_axes[0].set(ylabel="part of the loss")
    for colour, what in zip(COLOURS, ("kept", "pruned") if has_sizes else (), strict=False):
        for name in rows[0]:
            if name.startswith(f"{what}_size/"):
                plot(all_axes[1], name, color=colour, linewidth=0.6, alpha=0.4)
        plot(all_axes[1], f"{what}_size", color=colour, linewidth=2, label=what)
        all_axes[1].set(ylabel="mean |w| (thin: single layers)")
    for axes in all_axes:
        axes.set(xlabel="step", yscale="log")
        axes.legend()
    return figure


@matplotlib.rc_context(STYLE)
def filters(counts: Mapping[str, Sequence[int]], title: str) -> Figure:
    """Draws how many filters of each layer stay: (kept, all) by path, first layer on top."""
    height = max(2.5, 1.0 + 0.19 * len(counts))
    figure, (axes,) = new_figure(title, columns=1, height=height)
    places = np.arange(len(counts))
    kept, whole = (np.array(values) for values in zip(*counts.values(), strict=True))
    axes.barh(places, whole, 0.8, color="#dddddd", label="removed")
    axes.barh(places, kept, 0.8, color=COLOURS[0], label="kept")
    name_layers(axes, counts, xlabel="filters")
    axes.legend(loc="best")
    return figure
