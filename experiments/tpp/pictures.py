"""Pictures: of one run, and of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.shell.pictures import COLOURS, MARKERS, STYLE, Row


@matplotlib.rc_context(STYLE)
def regularisation(rows: Sequence[Row], title: str) -> Figure:
    """Draws penalty and sizes of the filters over the steps.

    Args:
        rows: rows of regularise.csv.
        title: what was regularised.
    """
    has_sizes = "kept_size" in rows[0]
    figure, all_axes = _figure(title, columns=1 + has_sizes)
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
    """Draws how many filters of each layer stay, first layer on top.

    Args:
        counts: (kept, all) by path of the kernel.
        title: what was pruned.
    """
    height = max(2.5, 1.0 + 0.19 * len(counts))
    figure, (axes,) = _figure(title, columns=1, height=height)
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


@matplotlib.rc_context(STYLE)
def jsv_by_ratio(groups: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draws the mean Jacobian singular value, right after pruning and at the end, by ratio.

    Args:
        groups: see `report.group`.
        title: which network.
    """
    figure, all_axes = _figure(title, columns=2)
    for axes, what in zip(all_axes, ("pruned_jsv", "final_jsv"), strict=True):
        _lines(axes, groups, "ratio", what)
        axes.set(xlabel="pruning ratio")
        axes.set_yscale("log")
    all_axes[0].set(ylabel="mean JSV right after pruning")
    all_axes[1].set(ylabel="mean JSV after fine-tuning")
    all_axes[1].legend(fontsize=8)
    return figure


@matplotlib.rc_context(STYLE)
def accuracy_by_speedup(groups: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draws test accuracy (best epoch) against speed-up: in FLOPs, measured at batch 1 and 128.

    Args:
        groups: see `report.group`.
        title: which network.
    """
    labels = {
        "speedup_flops": "speed-up in FLOPs",
        "speedup_1": "measured speed-up, batch 1",
        "speedup_128": "measured speed-up, batch 128",
    }
    figure, all_axes = _figure(title, columns=len(labels))
    for axes, (quantity, label) in zip(all_axes, labels.items(), strict=True):
        _lines(axes, groups, quantity, "best_accuracy")
        axes.set(xlabel=label)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    all_axes[0].set(ylabel="test accuracy, best epoch")
    all_axes[-1].legend(fontsize=8)
    return figure


def _lines(axes: Axes, groups: Sequence[Mapping[str, Any]], x: str, y: str) -> None:
    """Draws a line with error bars (standard deviation over seeds) for each name."""
    names = list(dict.fromkeys(group["name"] for group in groups))
    for index, name in enumerate(names):
        own = sorted((group for group in groups if group["name"] == name), key=lambda g: g[x][0])
        means, spreads = zip(*(group[y] for group in own), strict=True)
        axes.errorbar(
            [group[x][0] for group in own],
            means,
            yerr=spreads,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=5,
            linewidth=1.4,
            label=name,
        )


def _figure(title: str, *, columns: int, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.0 * max(2, columns), height), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))
