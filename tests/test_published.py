"""Published numbers are what the papers print."""

from experiments.cifar.choices import CRITERIA, MODELS
from experiments.report import published


def curve(paper, dataset, model, criterion):
    (points,) = [
        entry.curves[criterion]
        for entry in published.PUBLICATIONS
        if (entry.paper.split()[0], entry.dataset, entry.model) == (paper, dataset, model)
    ]
    return {round(100 * (1 - point.density), 2): point for point in points}


def test_names_are_those_of_the_programs():
    for entry in published.PUBLICATIONS:
        assert entry.model in MODELS
        assert set(entry.curves) <= set(CRITERIA)


def test_printed_numbers_have_deviations_and_digitised_ones_have_not():
    points = curve("NTK-SAP", "cifar10", "resnet20", "ntk_sap")
    assert list(points) == [36.00, 59.04, 73.79, 83.22, 89.26, 93.13, 95.60, 97.19, 98.20]
    assert points[98.20][1:] == (77.66, 0.50, False)  # Table 12.
    assert points[97.19][1:] == (81.4, None, True)
    hidden = curve("NTK-SAP", "cifar10", "resnet20", "synflow")
    assert list(hidden) == [73.79, 83.22, 89.26, 93.13, 95.60, 98.20]
    dense = curve("NTK-SAP", "imagenet", "resnet50", "dense")
    assert dense[0.0][1:] == (76.20, None, False)
    assert published.on("imagenet2012") == published.on("imagenet") != []


def test_accuracies_fall_from_one_end_to_the_other():
    # A mistyped digit would stand out.
    for entry in published.PUBLICATIONS:
        for points in entry.curves.values():
            assert [p.density for p in points] == sorted((p.density for p in points), reverse=True)
            for left, right in zip(points, points[1:], strict=False):
                assert -24 < right.accuracy - left.accuracy < 1
