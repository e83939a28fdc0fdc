"""The pictures of a section, with their names and captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from matplotlib.figure import Figure

from experiments.report import accuracy, drawing, layers, spectra, tables
from experiments.report.comparison import Comparison
from experiments.report.page import Picture
from experiments.report.setups import Section


def draw(section: Section, comparisons: Sequence[Comparison]) -> Iterator[Picture]:
    """Draws the pictures of a section, in both themes, one after the other.

    Args:
        section: our runs.
        comparisons: what is published on the same data set.
    """
    yield _picture(
        f"{section.number}-accuracy",
        f"Test accuracy after the last epoch against density, {accuracy.seeds_text(section)}. "
        "Sanity checks have hollow markers; the horizontal line is the dense network. Points are "
        "shifted sideways a little, so that bars stay apart.",
        partial(accuracy.draw, section, comparisons),
    )
    if 0 < len(section.densities) <= 4:
        yield _picture(
            f"{section.number}-seeds",
            "The same, ranked at each density: dots are single seeds, markers their means, bars "
            "standard deviations. The axes differ.",
            partial(accuracy.draw_seeds, section),
        )
    if section.pruned:
        yield _picture(
            f"{section.number}-cost",
            "Search time, and share of the dense network's FLOPs; means over seeds.",
            partial(layers.draw_cost, section),
        )
    for density in section.densities:
        yield from _at(section, density)


def _at(section: Section, density: float) -> Iterator[Picture]:
    text = tables.density_text(density)
    if layers.are_same(section, density):
        yield _picture(
            f"{section.number}-layers-{text}",
            f"What is kept of each layer at density {text}, first layer on top; means over seeds. "
            "A channel is alive if it lies on a path from input to output.",
            partial(layers.draw, section, density),
        )
    measured = spectra.measured(section, density)
    if not measured:
        return
    yield _picture(
        f"{section.number}-spectrum-{text}",
        f"Eigenvalues of the NTK before training at density {text}, with respect to the weights "
        "kept, and their ratio to those of the dense network: geometric mean over seeds, bands "
        "from lowest to highest.",
        partial(spectra.draw_initial, measured, density),
    )
    if len(measured[0].epochs) > 1:
        yield _picture(
            f"{section.number}-spectrum-drift-{text}",
            "Kernel distance 1 − ⟨Θ, Θ₀⟩ / (‖Θ‖ ‖Θ₀‖) to the network before training, and "
            f"eigenvalues after the last epoch, at density {text}; means over seeds.",
            partial(spectra.draw_drift, measured, density),
        )


def _picture(name: str, caption: str, draw: Callable[[], Figure]) -> Picture:
    light, dark = (drawing.png(draw, theme) for theme in (drawing.LIGHT, drawing.DARK))
    return Picture(name, caption, light, dark)
