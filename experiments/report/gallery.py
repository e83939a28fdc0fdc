"""The pictures of a section, with their names and what their captions need."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from experiments.report import accuracy, filters, layers, spectra
from experiments.report.comparison import Comparison
from experiments.report.setups import Section, density_text
from experiments.shell.pictures import STYLE


class Picture(NamedTuple):
    """A picture."""

    kind: str  # Which caption it has.
    name: str  # Of its files, without ending.
    files: dict[str, bytes]  # What they hold, by ending.
    density: str = ""  # Of which it shows the masks; empty if it shows all.
    shown: tuple[str, ...] = ()  # What its panels show, where that varies.

    @property
    def address(self) -> str:
        """The address that embeds the vector picture in a page."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.files["svg"]).decode()


def draw(section: Section, comparisons: Sequence[Comparison]) -> Iterator[Picture]:
    """Draws the pictures of a section, one after the other.

    `comparisons` are what is published on the same data set.
    """
    number = section.number
    yield Picture("accuracy", f"{number}-accuracy", render(accuracy.draw, section, comparisons))
    if 0 < len(section.densities) <= 4:
        yield Picture("seeds", f"{number}-seeds", render(accuracy.draw_seeds, section))
    for density in section.densities:
        text = density_text(density)
        panels = layers.panels(section, density)
        if panels:
            drawn = render(layers.draw, section, density, panels)
            shown = tuple(panel.label for panel in panels)
            yield Picture("layers", f"{number}-layers-{text}", drawn, text, shown)
        measured = spectra.measured(section, density)
        if measured:
            drawn = render(spectra.draw_initial, measured, density)
            yield Picture("spectrum", f"{number}-spectrum-{text}", drawn, text)
        if measured and len(measured[0].epochs) > 1:
            drawn = render(spectra.draw_drift, measured, density)
            yield Picture("spectrum-drift", f"{number}-spectrum-drift-{text}", drawn, text)


def draw_network(network: filters.Network) -> Iterator[Picture]:
    """Draws the pictures of a network of which filters were pruned."""
    if network.by_ratio:
        yield Picture("jsv", f"{network.name}-jsv", render(filters.draw_jacobian, network))
    yield Picture("speedup", f"{network.name}-speedup", render(filters.draw_speedup, network))


def render(make: Callable[..., Figure], *arguments: Any) -> dict[str, bytes]:
    """Draws a figure in the style of the report; returns its files by their ending."""
    # Without a salt and with a date, the same picture would be another file every time.
    look: Any = {**STYLE, "font.size": 10.5, "svg.hashsalt": "report"}
    look |= {"axes.titlesize": 10.5, "axes.titlelocation": "left"}
    with matplotlib.rc_context(look):
        figure, svg, png = make(*arguments), io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.savefig(png, format="png", dpi=150)
    return {"svg": svg.getvalue(), "png": png.getvalue()}
