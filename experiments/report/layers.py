"""Pictures of what the masks keep: density and live channels of each layer, FLOPs, search time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from experiments.report import drawing, tables
from experiments.report.setups import Cell, Line, Section

COLOURS = "viridis"
"""Of the heat maps: the same order for all eyes, and in print."""


def are_same(section: Section, density: float) -> bool:
    """Says whether all runs of a density have the same layers, so that they can be compared."""
    layers = [
        set(run.summary["layer_densities"])
        for line in section.pruned
        if (cell := line.at(density)) is not None
        for run in cell.runs
    ]
    return all(each == layers[0] for each in layers)


def draw(section: Section, density: float) -> Figure:
    """Draws density and share of live channels of each layer, a column a criterion, means of seeds.

    Args:
        section: our runs.
        density: which of its densities; its runs must have the same layers.

    Returns:
        The picture, with a second panel for the channels if they were recorded.
    """
    columns = [(line, cell) for line in section.pruned if (cell := line.at(density)) is not None]
    layers = list(columns[0][1].runs[0].summary["layer_densities"])
    kept = _matrix(columns, layers, lambda summary, layer: summary["layer_densities"][layer])
    live = _matrix(columns, layers, _live)
    dead = _matrix(columns, layers, lambda summary, layer: layer in summary.get("dead_layers", ()))
    panels = 1 if np.isnan(live).all() else 2
    longest = max(len(line.name) for line, _ in columns)
    figure = Figure(
        figsize=(drawing.WIDTH, 1.6 + 0.21 * len(layers) + 0.045 * longest), layout="constrained"
    )
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    smallest = kept[kept > 0].min() if (kept > 0).any() else 0.01
    norm = LogNorm(min(smallest, 0.99), 1)
    _heat_map(axes[0], kept, columns, norm, "density of the layer")
    axes[0].set_yticks(range(len(layers)), [layer.removesuffix("/kernel") for layer in layers])
    if panels == 2:
        _heat_map(axes[1], live, columns, Normalize(0, 1), "share of channels alive")
    for panel in axes:
        for row, column in np.argwhere(dead > 0):
            panel.text(column, row, "×", ha="center", va="center", color="#ff5050", weight="bold")
    note = " (×: dead in a seed)" if (dead > 0).any() else ""
    figure.suptitle(
        f"density {tables.density_text(density)}{note}", fontsize=10.5, x=0.01, ha="left"
    )
    return figure


def _live(summary: dict[str, Any], layer: str) -> float:
    shares = summary.get("live_channels") or {}
    return shares.get(layer, math.nan)


def _matrix(
    columns: Sequence[tuple[Line, Cell]],
    layers: Sequence[str],
    value: Callable[[dict[str, Any], str], float],
) -> np.ndarray:
    return np.array(
        [
            [
                statistics.fmean(value(run.summary, layer) for run in cell.runs)
                for _, cell in columns
            ]
            for layer in layers
        ]
    )


def _heat_map(
    axes: Axes,
    values: np.ndarray,
    columns: Sequence[tuple[Line, Cell]],
    norm: Normalize,
    label: str,
) -> None:
    colours = matplotlib.colormaps[COLOURS].with_extremes(bad="#888888", under="black")
    shown = axes.imshow(
        np.where(values > 0, values, norm.vmin * 0.5 if norm.vmin else 0),
        cmap=colours,
        norm=norm,
        aspect="auto",
    )
    names = [line.name for line, _ in columns]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=9)
    axes.grid(visible=False)
    bar = axes.figure.colorbar(shown, ax=axes, location="top", shrink=0.9, label=label)
    bar.ax.xaxis.set_major_formatter("{x:g}")


def draw_cost(section: Section) -> Figure:
    """Draws seconds of search and share of FLOPs kept: a row a criterion, a point a density."""
    lines = section.pruned[::-1]
    densities = section.densities
    figure = Figure(figsize=(drawing.WIDTH, 1.5 + 0.32 * len(lines)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    shades = np.linspace(0.3, 1, len(densities)) if len(densities) > 1 else [1.0]
    for density, shade in zip(densities, shades, strict=True):
        for row, line in enumerate(lines):
            cell = line.at(density)
            if cell is None:
                continue
            found = tables.cell_numbers(cell)
            look = {"color": drawing.colour(line.criterion), "alpha": shade, "s": 34}
            left.scatter([max(found["search_seconds"] or 0, 0.001)], [row], **look)
            right.scatter([100 * (found["flops_kept"] or 0)], [row], **look)
    left.set_yticks(range(len(lines)), [line.name for line in lines])
    left.set_xscale("log")
    drawing.log_axis(left.xaxis)
    left.set_xlabel("search (seconds, compilation included)")
    right.set_xlabel("FLOPs kept (%)")
    right.set_xlim(left=0)
    texts = " to ".join(tables.density_text(d) for d in (densities[0], densities[-1]))
    strongest = f"densities {texts}, the lowest in full colour"
    left.set_title(
        strongest if len(densities) > 1 else f"density {texts.split(' to ')[0]}",
        fontsize=10.5,
        loc="left",
    )
    return figure
