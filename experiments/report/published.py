"""Published test accuracies, with their sources.

published.toml holds the numbers; its head explains the format.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

DATA = Path(__file__).with_name("published.toml")

DIGITISING_ERROR = 0.06
"""Percentage points to which a number is read off a figure."""


class Point(NamedTuple):
    """Test accuracy at a density."""

    density: float  # Fraction of weights kept.
    accuracy: float  # Mean over seeds, percent.
    std: float | None = None  # Over seeds, percentage points, where the paper gives it.
    digitised: bool = False  # Read off a figure.


class Publication(NamedTuple):
    """Curves of one figure or table."""

    paper: str  # Who and where.
    place: str  # Figures and tables that the numbers are from.
    dataset: str  # As `experiments.data` calls it.
    model: str  # As `experiments.cifar` calls it.
    curves: dict[str, tuple[Point, ...]]  # Points by criterion, from the highest density down.
    epochs: int | None = None  # Length of training, where known.


def _publication(record: dict[str, Any]) -> Publication:
    densities = [0.8**power for power in record.pop("powers")]
    curves = {
        criterion: tuple(
            _point(density, entry)
            for density, entry in zip(densities, entries, strict=True)
            if entry != ""
        )
        for criterion, entries in record.pop("curves").items()
    }
    return Publication(**record, curves=curves)


def _point(density: float, entry: str | float) -> Point:
    if not isinstance(entry, str):
        return Point(density, float(entry), digitised=True)
    mean, _, std = entry.partition(" ± ")
    return Point(density, float(mean), float(std) if std else None)


PUBLICATIONS = tuple(
    map(_publication, tomllib.loads(DATA.read_text(encoding="utf-8"))["publication"])
)
"""All that is known. PX's Tiny-ImageNet network has the small stem, NTK-SAP's has not."""


def on(dataset: str) -> list[Publication]:
    """Returns the publications on a data set, by its name."""
    dataset = "imagenet" if dataset.startswith("imagenet") else dataset
    return [publication for publication in PUBLICATIONS if publication.dataset == dataset]
