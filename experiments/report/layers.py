"""Pictures of what the masks keep: density and live channels of each layer, FLOPs, search time.

A panel that would be the same for all criteria is left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from experiments.report import drawing, tables
from experiments.report.runs import Summary
from experiments.report.setups import Cell, Line, Section

COLOURS = "viridis"
"""Of the heat maps: in the same order for all eyes, and in print."""

Columns = Sequence[tuple[Line, Cell]]


class Panel(NamedTuple):
    """A heat map.

    Attributes:
        label: what it shows.
        values: (layers, criteria).
        norm: from values to colours.
    """

    label: str
    values: np.ndarray
    norm: Normalize


def are_same(section: Section, density: float) -> bool:
    """Says whether all runs of a density have the same layers, so that they can be compared."""
    layers = [
        set(run.summary.layer_densities) for _, cell in section.at(density) for run in cell.runs
    ]
    return all(paths == layers[0] for paths in layers)


def panels(section: Section, density: float) -> list[Panel]:
    """Returns density and share of live channels by layer and criterion, means over seeds.

    Without those that were not recorded, or that are the same for all of several criteria.
    """
    columns = section.at(density)
    layers = _layers(columns)
    kept = _matrix(columns, layers, lambda summary, layer: summary.layer_densities[layer])
    live = _matrix(columns, layers, lambda s, layer: s.live_channels.get(layer, math.nan))
    smallest = kept[kept > 0].min() if (kept > 0).any() else 0.01
    found = [
        Panel("density of the layer", kept, LogNorm(min(smallest, 0.99), 1)),
        Panel("share of channels alive", live, Normalize(0, 1)),
    ]
    return [panel for panel in found if not np.isnan(panel.values).all() and _differ(panel.values)]


def _differ(values: np.ndarray) -> bool:
    return values.shape[1] == 1 or not np.allclose(values, values[:, :1], equal_nan=True)


def draw(section: Section, density: float, shown: Sequence[Panel]) -> Figure:
    """Draws heat maps, one row for each layer and one column for each criterion.

    Args:
        section: our runs.
        density: which of its densities; its runs must have the same layers.
        shown: what `panels` returned; at least one.
    """
    columns = section.at(density)
    layers = _layers(columns)
    dead = _matrix(columns, layers, lambda summary, layer: layer in (summary.dead_layers or ()))
    longest = max(len(line.name) for line, _ in columns)
    size = (drawing.WIDTH, 1.6 + 0.21 * len(layers) + 0.045 * longest)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for place, panel in zip(axes, shown, strict=True):
        _heat_map(place, panel, [line.name for line, _ in columns])
        for row, column in np.argwhere(dead > 0):
            place.text(column, row, "×", ha="center", va="center", color="#ff5050", weight="bold")
    axes[0].set_yticks(range(len(layers)), [layer.removesuffix("/kernel") for layer in layers])
    note = " (×: dead in a seed)" if (dead > 0).any() else ""
    title = f"density {tables.density_text(density)}{note}"
    figure.suptitle(title, fontsize=10.5, x=0.01, ha="left")
    return figure


def _layers(columns: Columns) -> list[str]:
    return list(columns[0][1].runs[0].summary.layer_densities)


def _matrix(
    columns: Columns, layers: Sequence[str], value: Callable[[Summary, str], float]
) -> np.ndarray:
    def mean(cell: Cell, layer: str) -> float:
        return statistics.fmean(value(run.summary, layer) for run in cell.runs)

    return np.array([[mean(cell, layer) for _, cell in columns] for layer in layers])


def _heat_map(axes: Axes, panel: Panel, names: Sequence[str]) -> None:
    colours = matplotlib.colormaps[COLOURS].with_extremes(bad="#888888", under="black")
    norm = panel.norm
    shown = axes.imshow(
        np.where(panel.values > 0, panel.values, norm.vmin * 0.5 if norm.vmin else 0),
        cmap=colours,
        norm=norm,
        aspect="auto",
    )
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=9)
    axes.grid(visible=False)
    bar = axes.figure.colorbar(shown, ax=axes, location="top", shrink=0.9, label=panel.label)
    bar.ax.xaxis.set_major_formatter("{x:g}")


# -- Cost ----------------------------------------------------------------------------------------


def flops_differ(section: Section) -> bool:
    """Says whether criteria keep different shares of the FLOPs at any density."""
    shares = [
        [tables.cell_means(cell)["flops_kept"] or 0 for _, cell in section.at(density)]
        for density in section.densities
    ]
    return any(_differ(np.array([row])) for row in shares)


def draw_cost(section: Section) -> Figure:
    """Draws seconds of search, and share of FLOPs kept: a row for each criterion."""
    lines, densities = section.pruned[::-1], section.densities
    size = (drawing.WIDTH, 1.5 + 0.32 * len(lines))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, 1 + flops_differ(section), sharey=True, squeeze=False)[0]
    shades = np.linspace(0.3, 1, len(densities)) if len(densities) > 1 else [1.0]
    for density, shade in zip(densities, shades, strict=True):
        for line, cell in section.at(density):
            row, means = lines.index(line), tables.cell_means(cell)
            look = {"color": drawing.colour(line.criterion), "alpha": shade, "s": 34}
            axes[0].scatter([max(means["search_seconds"] or 0, 0.001)], [row], **look)
            if len(axes) > 1:
                axes[1].scatter([100 * (means["flops_kept"] or 0)], [row], **look)
    axes[0].set_yticks(range(len(lines)), [line.name for line in lines])
    axes[0].set_xscale("log")
    drawing.log_axis(axes[0].xaxis)
    axes[0].set_xlabel("search (seconds, compilation included)")
    if len(axes) > 1:
        axes[1].set_xlabel("FLOPs kept (%)")
        axes[1].set_xlim(left=0)
    ends = [
        tables.density_text(density) for density in dict.fromkeys((densities[0], densities[-1]))
    ]
    full = ", the lowest in full colour" if len(ends) > 1 else ""
    title = f"density {' to '.join(ends)}{full}"
    axes[0].set_title(title, fontsize=10.5, loc="left")
    return figure
