"""The pictures of a section, with their names and what their captions need."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from experiments.report import accuracy, drawing, filters, layers, spectra, tables
from experiments.report.comparison import Comparison
from experiments.report.setups import Section


class Picture(NamedTuple):
    """A picture.

    Attributes:
        kind: which caption it has.
        name: of its files, without ending.
        drawn: the files.
        facts: what the caption says of it.
    """

    kind: str
    name: str
    drawn: drawing.Drawn
    facts: dict[str, Any]

    @property
    def address(self) -> str:
        """The address that embeds the vector picture in a page."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.drawn.svg).decode()


def draw(section: Section, comparisons: Sequence[Comparison]) -> Iterator[Picture]:
    """Draws the pictures of a section, one after the other.

    Args:
        section: our runs.
        comparisons: what is published on the same data set.
    """
    make = partial(_picture, section.number)
    yield make("accuracy", partial(accuracy.draw, section, comparisons))
    if 0 < len(section.densities) <= 4:
        yield make("seeds", partial(accuracy.draw_seeds, section))
    for density in section.densities:
        yield from _at(section, density)


def _at(section: Section, density: float) -> Iterator[Picture]:
    make = partial(_picture, section.number, density=density)
    if layers.are_same(section, density):
        panels = layers.panels(section, density)
        if panels:
            shown = [panel.label for panel in panels]
            yield make("layers", partial(layers.draw, section, density, panels), shown=shown)
    measured = spectra.measured(section, density)
    if measured:
        yield make("spectrum", partial(spectra.draw_initial, measured, density))
    if measured and len(measured[0].epochs) > 1:
        yield make("spectrum-drift", partial(spectra.draw_drift, measured, density))


def draw_network(network: filters.Network) -> Iterator[Picture]:
    """Draws the pictures of a network of which filters were pruned."""
    if network.by_ratio:
        drawn = drawing.draw(partial(filters.draw_jacobian, network))
        yield Picture("jsv", f"{network.name}-jsv", drawn, {})
    drawn = drawing.draw(partial(filters.draw_speedup, network))
    yield Picture("speedup", f"{network.name}-speedup", drawn, {})


def _picture(
    number: int,
    kind: str,
    make: Callable[[], Figure],
    *,
    density: float | None = None,
    **facts: Any,
) -> Picture:
    text = None if density is None else tables.density_text(density)
    name = f"{number}-{kind}" + ("" if text is None else f"-{text}")
    return Picture(kind, name, drawing.draw(make), {"density": text, **facts})
