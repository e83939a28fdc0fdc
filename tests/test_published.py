"""Published numbers are what the papers print."""

import math

import pytest

from experiments.cifar.choices import CRITERIA, MODELS
from experiments.report import published


def curve(paper, dataset, model, criterion):
    (points,) = [
        entry.curves[criterion]
        for entry in published.PUBLICATIONS
        if (entry.paper.split()[0], entry.dataset, entry.model) == (paper, dataset, model)
    ]
    return points


def test_a_curve_with_too_few_accuracies_is_refused(tmp_path):
    text = published.DATA.read_text().replace("px = [91.4, ", "px = [")
    (tmp_path / "published.toml").write_text(text)
    with pytest.raises(ValueError, match=r"PX .*Figure 2, px: expected 9 .* got 8"):
        published.read(tmp_path / "published.toml")


def test_names_are_those_of_the_programs():
    for each in published.PUBLICATIONS:
        assert each.model in MODELS
        assert set(each.curves) <= set(CRITERIA)


def test_densities_are_the_sparsities_of_the_figures():
    sparsities = [36.00, 59.04, 73.79, 83.22, 89.26, 93.13, 95.60, 97.19, 98.20]
    points = curve("NTK-SAP", "cifar10", "resnet20", "ntk_sap")
    assert [round(100 * (1 - point.density), 2) for point in points] == sparsities


@pytest.mark.parametrize(
    ("dataset", "model", "sparsity", "mean", "std"),
    [  # Tables 12 to 14, first and last columns.
        ("cifar10", "resnet20", 36.00, 91.36, 0.41),
        ("cifar10", "resnet20", 98.20, 77.66, 0.50),
        ("cifar100", "vgg16_bn", 36.00, 74.10, 0.37),
        ("cifar100", "vgg16_bn", 98.20, 69.27, 0.39),
        ("tiny_imagenet", "resnet18", 89.26, 51.90, 0.12),
        ("tiny_imagenet", "resnet18", 98.20, 43.92, 0.39),
    ],
)
def test_exact_values_replace_digitised_ones(dataset, model, sparsity, mean, std):
    points = curve("NTK-SAP", dataset, model, "ntk_sap")
    (point,) = [p for p in points if math.isclose(100 * (1 - p.density), sparsity, abs_tol=0.01)]
    assert (point.accuracy, point.std, point.digitised) == (mean, std, False)
    assert [p.digitised for p in points] == [False, True] * 4 + [False]


def test_other_points_are_digitised_and_hidden_ones_are_missing():
    points = curve("NTK-SAP", "cifar10", "resnet20", "synflow")
    assert [round(100 * (1 - p.density), 2) for p in points] == [
        *(73.79, 83.22, 89.26, 93.13, 95.60, 98.20)
    ]
    assert [p.accuracy for p in points] == [89.6, 88.5, 86.9, 84.9, 82.4, 75.2]
    assert all(p.digitised and p.std is None for p in points)


def test_imagenet():
    points = curve("PX", "imagenet", "resnet50", "px")
    assert [(round(p.density, 4), p.accuracy, p.std) for p in points] == [
        (0.1074, 68.11, 0.29),
        (0.0440, 60.28, 0.32),
    ]
    assert curve("NTK-SAP", "imagenet", "resnet50", "dense")[0].accuracy == 76.20
    assert published.on("imagenet2012") == published.on("imagenet") != []


def test_accuracies_fall_from_one_end_to_the_other():
    # A mistyped digit would stand out.
    for each in published.PUBLICATIONS:
        for points in each.curves.values():
            assert [p.density for p in points] == sorted((p.density for p in points), reverse=True)
            for left, right in zip(points, points[1:], strict=False):
                assert -24 < right.accuracy - left.accuracy < 1
