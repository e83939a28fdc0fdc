"""Pictures and numbers of the eigenvalues of the NTK: at initialisation, and along the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.report import drawing, tables
from experiments.report.runs import Run
from experiments.report.setups import Line, Section, density_text
from experiments.shell import pictures
from experiments.storage.run_folder import DISTANCE, EIGENVALUE, EPOCH

FLOOR = 1e-6
"""Share of the largest eigenvalue below which float32 kernels have none."""


class Measured(NamedTuple):
    """The spectra of the runs of a cell, seeds along the first axis."""

    line: Line  # Which criterion found the masks.
    epochs: np.ndarray  # (epochs,), from 0.
    eigenvalues: np.ndarray  # (seeds, epochs, eigenvalues), descending.
    distances: np.ndarray  # (seeds, epochs), of the kernel to that of epoch 0.


def measured(section: Section, density: float) -> list[Measured]:
    """Returns the spectra of the dense network and of those pruned to a density.

    Runs that measured other numbers of eigenvalues or epochs than the first one cannot be compared
    with it, and are left out.
    """
    cells = [(line, line.cells[0]) for line in section.dense] + section.at(density)
    spectra: list[Measured] = []
    for line, cell in cells:
        seeds = [_arrays(run) for run in cell.runs if run.spectrum]
        if seeds:
            shape = spectra[0].eigenvalues.shape[1:] if spectra else seeds[0][1].shape
            seeds = [arrays for arrays in seeds if arrays[1].shape == shape]
        if seeds:
            epochs, eigenvalues, distances = zip(*seeds, strict=True)
            spectra.append(Measured(line, epochs[0], np.stack(eigenvalues), np.stack(distances)))
    return spectra if any(spectrum.line.criterion != "dense" for spectrum in spectra) else []


def _arrays(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    names = [name for name in run.spectrum[0] if name.startswith(EIGENVALUE)]
    return (
        np.array([row[EPOCH] for row in run.spectrum]),
        np.array([[row[name] for name in names] for row in run.spectrum], float),
        np.array([row[DISTANCE] for row in run.spectrum], float),
    )


def _dense(spectra: Sequence[Measured]) -> Measured | None:
    return next((spectrum for spectrum in spectra if spectrum.line.criterion == "dense"), None)


def draw_initial(spectra: Sequence[Measured], density: float) -> Figure:
    """Draws the eigenvalues before training (NTK-SAP, figure 2): mean and range over seeds.

    If the dense network was measured, a second panel shows their ratio to its eigenvalues.
    """
    dense = _dense(spectra)
    references: list[Any] = [1.0]
    if dense is not None:
        references.append(_geometric_mean(_above_rounding(dense.eigenvalues[:, 0])))
    figure, panels = drawing.stack([4.0] if dense is None else [3.5, 3.5])
    for axes, reference in zip(panels, references, strict=True):
        for spectrum in spectra:
            values = _above_rounding(spectrum.eigenvalues[:, 0]) / reference
            _draw_eigenvalues(axes, values, spectrum.line, band=True)
        _label(axes, f"NTK before training, density {density_text(density)}")
    drawing.legend_beside(panels[0])
    if dense is not None:
        _label(panels[1], "relative to the dense network", "eigenvalue / dense eigenvalue")
        low, high = panels[1].get_ylim()
        if high <= 500 * low:  # The labels of a longer axis would be too many.
            pictures.log_scale(panels[1])
    return figure


def draw_drift(spectra: Sequence[Measured], density: float) -> Figure:
    """Draws how far the kernel moves in training, and its eigenvalues after the last epoch."""
    figure, (above, below) = drawing.stack([3.3, 3.3])
    for spectrum in spectra:
        look, name = drawing.style(spectrum.line), spectrum.line.name
        above.plot(spectrum.epochs, spectrum.distances.mean(0), label=name, **look)
        last, first = (_above_rounding(spectrum.eigenvalues[:, epoch]) for epoch in (-1, 0))
        _draw_eigenvalues(below, last, spectrum.line)
        _draw_eigenvalues(below, first, spectrum.line, alpha=0.35, linewidth=0.9, marker=None)
    above.set(xlabel="epoch", ylabel="kernel distance to initialisation")
    above.set_ylim(bottom=0)
    above.xaxis.set_major_locator(MaxNLocator(integer=True))
    above.set_title(f"NTK in training, density {density_text(density)}")
    last_epoch = spectra[0].epochs[-1]
    _label(below, f"after epoch {last_epoch} (faint: before training)")
    drawing.legend_beside(above)
    return figure


def _draw_eigenvalues(
    axes: Axes, values: np.ndarray, line: Line, *, band: bool = False, **look: Any
) -> None:
    """Draws the geometric mean over seeds of (seeds, eigenvalues), and the range as a band."""
    index = np.arange(1, values.shape[1] + 1)
    look = drawing.style(line) | {"markersize": 4, "markevery": max(1, len(index) // 12)} | look
    axes.plot(index, _geometric_mean(values), label=line.name, **look)
    if band and len(values) > 1:
        low, high = values.min(0), values.max(0)
        axes.fill_between(index, low, high, color=look["color"], alpha=0.12, lw=0)


def _above_rounding(values: np.ndarray) -> np.ndarray:
    """Leaves out what is zero to rounding: lines end at the rank of the kernel."""
    return np.where(values > FLOOR * values[:, :1], values, np.nan)


def _geometric_mean(values: np.ndarray) -> np.ndarray:
    return np.exp(np.log(values).mean(0))


def _label(axes: Axes, title: str, ylabel: str = "eigenvalue of the NTK") -> None:
    xlabel = f"index of the eigenvalue, from the largest ({FLOOR:g} of which is rounding)"
    axes.set(yscale="log", xlabel=xlabel, ylabel=ylabel, title=title)


def table(spectra: Sequence[Measured]) -> tables.Table | None:
    """Compares spectra before training with the dense one; None without a dense one.

    The last column is the mean of |log10(eigenvalue / dense eigenvalue)| over the index: 0 for the
    dense spectrum itself, 1 for one that is ten times off everywhere. Eigenvalues below `FLOOR` of
    the largest dense one are lost in rounding, and count as that.
    """
    dense = _dense(spectra)
    if dense is None:
        return None
    reference = dense.eigenvalues[:, 0].mean(0)
    floor = FLOOR * reference[0]
    rows = []
    for spectrum in spectra:
        values = spectrum.eigenvalues[:, 0].mean(0)
        off = np.log10(np.maximum(values, floor) / np.maximum(reference, floor))
        row = (
            spectrum.line.name,
            f"{values.sum() / reference.sum():.3g}",
            f"{values[0] / reference[0]:.3g}",
            f"{np.abs(off).mean():.2f}",
        )
        rows.append(tuple(map(tables.Entry, row)))
    return tables.Table(("criterion", "trace / dense", "largest / dense", "decades off"), rows)
