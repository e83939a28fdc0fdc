"""Published test accuracies, with their sources, as plain data.

Numbers from tables are as printed. Where the paper has no table, points were read off its figure,
to about 0.06 percentage points; they say `digitised`. Points that are hidden under another curve or
lie below the axis are left out.
"""

from __future__ import annotations

from typing import NamedTuple

DENSITIES = tuple(0.8**k for k in range(2, 20, 2))
"""Densities of both papers' figures; their sparsities are 36, 59.04, ..., 98.20 %."""

DIGITISING_ERROR = 0.06
"""Percentage points."""


class Point(NamedTuple):
    """Test accuracy at a density.

    Attributes:
        density: fraction of weights kept.
        accuracy: mean over seeds, percent.
        std: standard deviation over seeds, percentage points, where the paper gives it.
        digitised: read off a figure.
    """

    density: float
    accuracy: float
    std: float | None = None
    digitised: bool = False


class Publication(NamedTuple):
    """Curves of one figure or table.

    Attributes:
        paper: who and where.
        place: figures and tables that the numbers are from.
        dataset: as `experiments.data` calls it.
        model: as `experiments.cifar.choices` calls it.
        epochs: length of training, where known.
        curves: points by criterion, from the highest density down.
    """

    paper: str
    place: str
    dataset: str
    model: str
    epochs: int | None
    curves: dict[str, tuple[Point, ...]]


NTK_SAP = "NTK-SAP (Wang, Li, Sun, ICLR 2023)"
PX = "PX (Iurada, Ciccone, Tommasi, CVPR 2024)"

X = None
"""A point that cannot be read off the figure."""


def _curve(*accuracies: float | None, exact: tuple[str, ...] = ()) -> tuple[Point, ...]:
    """Makes a curve of digitised accuracies, one a density, and of exact ones `mean±std`.

    The exact ones are those of the NTK-SAP paper's tables: every other density, from the first on.
    """
    points = {
        density: Point(density, accuracy, digitised=True)
        for density, accuracy in zip(DENSITIES, accuracies, strict=True)
        if accuracy is not None
    }
    for density, printed in zip(DENSITIES[::2], exact, strict=False):
        points[density] = _printed(density, printed)
    return tuple(points[density] for density in DENSITIES if density in points)


def _imagenet(*accuracies: str) -> tuple[Point, ...]:
    densities = (0.8**10, 0.8**14)  # Sparsities 89.26 and 95.60 %.
    return tuple(map(_printed, densities, accuracies))


def _printed(density: float, text: str) -> Point:
    mean, _, std = text.partition("±")
    return Point(density, float(mean), float(std) if std else None)


PUBLICATIONS = (
    Publication(
        paper=NTK_SAP,
        place="Tables 12 to 14 (NTK-SAP, every other density), Figure 1 (the rest)",
        dataset="cifar10",
        model="resnet20",
        epochs=160,
        # fmt: off
        curves={
            "ntk_sap": _curve(
                91.4,
                90.9,
                90.0,
                89.1,
                87.9,
                85.9,
                83.8,
                81.4,
                77.7,
                exact=("91.36±.41", "90.04±.23", "87.86±.13", "83.84±.28", "77.66±.50"),
            ),
            "grasp": _curve(X, X, 89.45, X, 87.4, X, 83.4, 80.9, 76.9),
            "snip": _curve(X, X, X, X, X, 85.1, 82.8, X, X),
            "iterative_snip": _curve(X, X, X, X, 87.15, X, 83.0, 79.0, X),
            "synflow": _curve(X, X, 89.6, 88.5, 86.9, 84.9, 82.4, X, 75.2),
            "magnitude": _curve(X, X, X, X, X, X, X, 80.6, 76.0),
        },
        # fmt: on
    ),
    Publication(
        paper=NTK_SAP,
        place="Tables 12 to 14 (NTK-SAP, every other density), Figure 1 (the rest)",
        dataset="cifar100",
        model="vgg16_bn",
        epochs=160,
        # fmt: off
        curves={
            "ntk_sap": _curve(
                74.1,
                74.6,
                74.1,
                74.0,
                73.3,
                72.5,
                71.9,
                70.8,
                69.3,
                exact=("74.10±.37", "74.12±.19", "73.28±.32", "71.85±.41", "69.27±.39"),
            ),
            "snip": _curve(X, X, 73.8, 73.7, 73.0, 72.1, 71.3, 69.9, X),
            "grasp": _curve(73.5, 73.0, 72.7, 72.35, 71.7, 70.8, 70.2, 69.3, 67.9),
            "iterative_snip": _curve(X, X, X, 73.4, 72.8, 71.7, 71.0, 69.65, 68.1),
            "synflow": _curve(X, X, X, 73.5, 72.6, 71.6, 70.1, 68.5, 66.8),
            "magnitude": _curve(X, 73.8, 73.4, 73.1, 72.5, 71.85, 70.9, 69.8, 67.8),
        },
        # fmt: on
    ),
    Publication(
        paper=NTK_SAP,
        place="Tables 12 to 14 (NTK-SAP, every other density), Figure 1 (the rest)",
        dataset="tiny_imagenet",
        model="resnet18",
        epochs=200,
        # fmt: off
        curves={
            "ntk_sap": _curve(
                51.9,
                52.3,
                52.7,
                52.3,
                51.9,
                50.9,
                49.3,
                46.9,
                43.9,
                exact=("51.89±.38", "52.69±.14", "51.90±.12", "49.29±.15", "43.92±.39"),
            ),
            "snip": _curve(X, 51.7, 51.8, X, 51.0, 50.3, 48.8, 46.1, 42.3),
            "grasp": _curve(50.2, 50.0, 49.55, 49.8, 49.45, 48.4, 47.1, 45.3, 42.8),
            "iterative_snip": _curve(X, 51.9, 51.5, 51.2, 50.0, 47.6, 44.7, 40.8, X),
            "synflow": _curve(X, X, 52.05, X, 51.2, 49.75, X, X, X),
            "magnitude": _curve(51.5, 51.1, 50.9, 51.3, 50.3, 49.0, X, 44.05, X),
        },
        # fmt: on
    ),
    Publication(
        paper=NTK_SAP,
        place="Table 1",
        dataset="imagenet",
        model="resnet18",
        epochs=None,
        curves={
            "dense": (Point(1.0, 69.98),),
            "synflow": _imagenet("57.30", "45.65"),
            "snip": _imagenet("57.41", "45.04"),
            "iterative_snip": _imagenet("52.97", "37.44"),
            "grasp": _imagenet("58.16", "49.17"),
            "magnitude": _imagenet("58.75", "48.50"),
            "random": _imagenet("54.48", "42.80"),
            "ntk_sap": _imagenet("58.87", "49.43"),
        },
    ),
    Publication(
        paper=NTK_SAP,
        place="Table 1",
        dataset="imagenet",
        model="resnet50",
        epochs=None,
        curves={
            "dense": (Point(1.0, 76.20),),
            "synflow": _imagenet("66.81", "58.88"),
            "snip": _imagenet("60.98", "40.69"),
            "iterative_snip": _imagenet("52.53", "36.82"),
            "grasp": _imagenet("67.74", "59.73"),
            "magnitude": _imagenet("66.80", "43.79"),
            "random": _imagenet("65.30", "56.53"),
            "ntk_sap": _imagenet("68.28", "60.79"),
        },
    ),
    Publication(
        paper=PX,
        place="Figure 2",
        dataset="cifar10",
        model="resnet20",
        epochs=160,
        # fmt: off
        curves={
            "px": _curve(91.4, 91.1, 90.2, 88.9, 88.0, 86.0, 83.2, 80.7, 77.0),
            "ntk_sap": _curve(91.3, 90.7, 90.4, 89.1, X, 85.3, X, 80.1, X),
            "grasp": _curve(91.0, 90.5, 89.8, 88.8, 87.5, 85.1, 82.6, 79.9, 76.3),
        },
        # fmt: on
    ),
    Publication(
        paper=PX,
        place="Figure 2",
        dataset="cifar100",
        model="vgg16_bn",
        epochs=160,
        # fmt: off
        curves={
            "px": _curve(74.5, 74.1, 74.1, 73.7, 72.6, 72.15, 71.2, 70.2, 68.3),
            "ntk_sap": _curve(74.1, 74.5, 73.7, 73.8, 72.8, 71.8, 70.3, 68.5, 67.6),
            "grasp": _curve(73.5, 73.1, 72.6, 72.3, 71.7, 70.9, 69.8, 68.3, 67.2),
        },
        # fmt: on
    ),
    Publication(
        paper=PX,
        place="Figure 2",
        dataset="tiny_imagenet",
        model="resnet18_small_stem",
        epochs=200,
        # fmt: off
        curves={
            "px": _curve(61.0, 60.6, 59.2, 59.0, 58.4, 56.55, 53.9, 51.0, 48.3),
            "ntk_sap": _curve(60.6, 59.9, 59.0, 58.25, 57.8, 56.2, 53.3, 50.7, 46.9),
            "grasp": _curve(57.5, 56.9, 56.6, 56.0, 55.8, 54.8, 52.3, 49.2, 45.6),
        },
        # fmt: on
    ),
    Publication(
        paper=PX,
        place="Table 1 (3 runs)",
        dataset="imagenet",
        model="resnet50",
        epochs=90,
        curves={
            "synflow": _imagenet("66.48±.12", "59.41±.19"),
            "snip": _imagenet("60.50±.34", "45.82±.35"),
            "ntk_sap": _imagenet("67.98±.31", "59.84±.30"),
            "grasp": _imagenet("67.21±.52", "60.01±.16"),
            "random": _imagenet("64.97±.27", "56.79±.44"),
            "magnitude": _imagenet("66.56±.23", "47.80±.21"),
            "px": _imagenet("68.11±.29", "60.28±.32"),
        },
    ),
)
"""All that is known; the network of PX's Tiny-ImageNet has the small stem, NTK-SAP's has not."""


def on(dataset: str) -> list[Publication]:
    """Returns the publications on a data set, by its name."""
    dataset = "imagenet" if dataset.startswith("imagenet") else dataset
    return [each for each in PUBLICATIONS if each.dataset == dataset]
