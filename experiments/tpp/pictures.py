"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.shell.pictures import COLOURS, STYLE, Row, new_figure


@matplotlib.rc_context(STYLE)
def regularisation(rows: Sequence[Row], title: str) -> Figure:
    """Draws penalty and sizes of the filters over the steps; of the rows of regularise.csv."""
    has_sizes = "kept_size" in rows[0]
    figure, all_axes = new_figure(title, columns=1 + has_sizes)
    steps = [row["step"] for row in rows]
    all_axes[0].plot(steps, [row["penalty"] for row in rows], color=COLOURS[0], label="penalty")
    all_axes[0].plot(
        steps, [row["strength"] for row in rows], "--", color=COLOURS[4], label="strength"
    )
    all_axes[0].set(xlabel="step", ylabel="part of the loss")
    all_axes[0].set_yscale("log")
    all_axes[0].legend()
    if has_sizes:
        for colour, what in zip(COLOURS, ("kept", "pruned"), strict=False):
            layers = [name for name in rows[0] if name.startswith(f"{what}_size/")]
            for name in layers:
                values = [row[name] for row in rows]
                all_axes[1].plot(steps, _positive(values), color=colour, linewidth=0.6, alpha=0.4)
            mean = [row[f"{what}_size"] for row in rows]
            all_axes[1].plot(steps, _positive(mean), color=colour, linewidth=2, label=what)
        all_axes[1].set(xlabel="step", ylabel="mean |w| (thin: single layers)")
        all_axes[1].set_yscale("log")
        all_axes[1].legend()
    return figure


def _positive(values: Sequence[float]) -> np.ndarray:
    """Leaves out zeros, which a logarithmic axis cannot show."""
    array = np.asarray(values, float)
    return np.where(array > 0, array, np.nan)


@matplotlib.rc_context(STYLE)
def filters(counts: Mapping[str, Sequence[int]], title: str) -> Figure:
    """Draws how many filters of each layer stay: (kept, all) by path, first layer on top."""
    height = max(2.5, 1.0 + 0.19 * len(counts))
    figure, (axes,) = new_figure(title, columns=1, height=height)
    places = np.arange(len(counts))
    kept, whole = (np.array(values) for values in zip(*counts.values(), strict=True))
    axes.barh(places, whole, 0.8, color="#dddddd", label="removed")
    axes.barh(places, kept, 0.8, color=COLOURS[0], label="kept")
    axes.set_yticks(places, [path.removesuffix("/kernel") for path in counts])
    axes.set_ylim(len(counts) - 0.4, -0.6)
    axes.set(xlabel="filters")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="best")
    return figure
