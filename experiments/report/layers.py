"""Pictures of what the masks keep: density and live channels of each layer.

A panel that would be the same for all criteria is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from experiments.report import drawing
from experiments.report.runs import Summary
from experiments.report.setups import Cell, Line, Section, density_text

COLOURS = "viridis"
"""Of the heat maps: in the same order for all eyes, and in print."""

Columns = Sequence[tuple[Line, Cell]]


class Panel(NamedTuple):
    """A heat map."""

    label: str
    values: np.ndarray  # (layers, criteria).
    norm: Normalize


def panels(section: Section, density: float) -> list[Panel]:
    """Returns density and share of live channels by layer and criterion, means over seeds.

    Without those that were not recorded, or that are the same for all of several criteria; none
    if the runs have different layers, which cannot be compared.
    """
    columns = section.at(density)
    runs = [run for _, cell in columns for run in cell.runs]
    if any(run.summary.layer_densities.keys() != set(_layers(columns)) for run in runs):
        return []
    kept = _means(columns, lambda summary: summary.layer_densities)
    live = _means(columns, lambda summary: summary.live_channels)
    smallest = kept[kept > 0].min() if (kept > 0).any() else 0.01
    both = [
        Panel("density of the layer", kept, LogNorm(min(smallest, 0.99), 1)),
        Panel("share of channels alive", live, Normalize(0, 1)),
    ]
    return [panel for panel in both if not np.isnan(panel.values).all() and _differ(panel.values)]


def _differ(values: np.ndarray) -> bool:
    return values.shape[1] == 1 or not np.allclose(values, values[:, :1], equal_nan=True)


def draw(section: Section, density: float, shown: Sequence[Panel]) -> Figure:
    """Draws heat maps, one row for each layer and one column for each criterion.

    `shown` is what `panels` returned, at least one.
    """
    columns = section.at(density)
    layers = _layers(columns)
    dead = _means(columns, lambda s: dict.fromkeys(s.dead_layers or (), 1.0), missing=0.0)
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
    title = f"density {density_text(density)}{note}"
    figure.suptitle(title, fontsize=10.5, x=0.01, ha="left")
    return figure


def _layers(columns: Columns) -> list[str]:
    return list(columns[0][1].runs[0].summary.layer_densities)


def _means(
    columns: Columns, values: Callable[[Summary], Mapping[str, float]], missing: float = math.nan
) -> np.ndarray:
    """Returns means over the seeds of each cell, (layers, criteria)."""
    layers = _layers(columns)
    by_cell = [
        [[values(run.summary).get(layer, missing) for layer in layers] for run in cell.runs]
        for _, cell in columns
    ]
    return np.stack([np.mean(by_seed, axis=0) for by_seed in by_cell], axis=1)


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
