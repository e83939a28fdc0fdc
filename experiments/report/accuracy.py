"""Pictures of test accuracy against density: ours, and what was published."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report import drawing, numbers
from experiments.report.comparison import Comparison, label
from experiments.report.setups import Section, density_text, partition

DODGE, WIDEST = 0.012, 0.06
"""Shift between neighbouring lines, so that error bars stay apart, and of all lines at most, as
shares of the axis."""


def draw(section: Section, comparisons: Sequence[Comparison]) -> Figure:
    """Draws accuracy against density; what was published of another set-up has its own panel."""
    same = [comparison for comparison in comparisons if comparison.is_same]
    different = [comparison for comparison in comparisons if not comparison.is_same]
    by_model = partition(different, lambda comparison: comparison.publication.model)
    heights = [4.3, *[3.6] * len(by_model)]
    figure, panels = drawing.stack(heights)
    _draw_ours(panels[0], section, same)
    for panel, published in zip(panels[1:], by_model.values(), strict=True):
        _draw_other_setup(panel, published)
    return figure


def draw_seeds(section: Section) -> Figure:
    """Draws the accuracies of single seeds, criteria ranked, one panel for each density."""
    densities = section.densities
    most = max(len(section.at(density)) for density in densities)
    figure, panels = drawing.stack([1.1 + 0.27 * most] * len(densities))
    for axes, density in zip(panels, densities, strict=True):
        ranked = numbers.ranked(section, density)
        for row, (line, cell) in enumerate(ranked):
            value, look = numbers.accuracy(cell), drawing.style(line)
            seeds = [100 * run.summary.last_test_accuracy for run in cell.runs]
            axes.errorbar([value.mean], [row], xerr=[value.std or 0], capsize=2.5, **look)
            axes.plot(seeds, [row + 0.3] * len(seeds), ".", color=look["color"], markersize=4)
        axes.set_yticks(range(len(ranked)), [line.name for line, _ in ranked])
        axes.set_ylim(len(ranked) - 0.4, -0.6)
        axes.set_title(f"density {density_text(density)}")
        axes.set_xlabel("test accuracy (%)")
    return figure


def seeds_text(section: Section) -> str:
    """Says over how many seeds the means are."""
    counts = sorted({len(cell.runs) for _, cell in section.cells})
    if counts == [1]:
        return "one seed each"
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"mean ± standard deviation over {seeds} seeds"


def _draw_ours(axes: Axes, section: Section, same: Sequence[Comparison]) -> None:
    densities = section.densities or [1.0]
    drawing.density_axis(axes, densities, margin=1.25 if len(densities) > 1 else 1.6)
    for line in section.dense:
        value, look = numbers.accuracy(line.cells[0]), drawing.style(line)
        axes.axhline(value.mean, label=line.name, **look)
        if value.std:
            low, high = value.mean - value.std, value.mean + value.std
            axes.axhspan(low, high, color=look["color"], alpha=0.15, lw=0)
    lines = [(line, [numbers.accuracy(cell) for cell in line.cells]) for line in section.pruned]
    # In the order in which they arrive at the right edge, best first.
    lines.sort(key=lambda pair: (pair[0].cells[-1].density, -pair[1][-1].mean))
    width = abs(np.diff(np.log(axes.get_xlim()))).item()
    dodge = min(DODGE, WIDEST / max(1, len(lines)))
    for place, (line, values) in enumerate(lines):
        shift = np.exp((place - (len(lines) - 1) / 2) * dodge * -width)
        axes.errorbar(
            [cell.density * shift for cell in line.cells],
            [value.mean for value in values],
            yerr=[value.std or 0 for value in values],
            capsize=2.5,
            elinewidth=1,
            label=line.name,
            **drawing.style(line),
        )
    _draw_published(axes, same)
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(textwrap.fill(f"{section.title}; {seeds_text(section)}", 80))
    drawing.legend_beside(axes)


def _draw_other_setup(axes: Axes, comparisons: Sequence[Comparison]) -> None:
    curves = [curve for comparison in comparisons for curve in comparison.curves.values()]
    drawing.density_axis(axes, [point.density for curve in curves for point in curve])
    _draw_published(axes, comparisons)
    axes.set_ylabel("test accuracy (%)")
    title = textwrap.fill(label(comparisons), 88)
    axes.set_title(title, fontsize=10, color=drawing.GREY)
    for spine in axes.spines.values():
        spine.set_color(drawing.GREY)
    drawing.legend_beside(axes, labelcolor=drawing.GREY)


def _draw_published(axes: Axes, comparisons: Sequence[Comparison]) -> None:
    curves = [pair for comparison in comparisons for pair in comparison.curves.items()]
    # In the order of our lines.
    curves.sort(key=lambda pair: (pair[1][-1].density, -pair[1][-1].accuracy))
    for criterion, points in curves:
        colour, marker = drawing.colour_and_marker(criterion)
        axes.errorbar(
            [point.density for point in points],
            [point.accuracy for point in points],
            yerr=[point.std or 0 for point in points],
            linestyle=drawing.PUBLISHED,
            linewidth=1.1,
            elinewidth=0.8,
            capsize=2,
            color=colour,
            marker=marker,
            markersize=4,
            markerfacecolor="none",
            label=f"{criterion}, published",
        )
