"""Class-balanced subsets. Oracle: counting."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import data
from experiments.shell.errors import UserError
from ntksap_jax import criteria


@given(
    seed=st.integers(0, 2**32 - 1),
    per_class=st.integers(1, 4),
    extra=st.lists(st.integers(0, 5), min_size=4, max_size=4),
)
@settings(max_examples=15)
def test_each_class_comes_exactly_so_many_times_and_no_example_twice(seed, per_class, extra):
    counts = per_class + np.array(extra)
    counts[0] += 40 - counts.sum()  # Always 40: another shape would be compiled again.
    labels = np.repeat([-4, -1, 2, 50], counts)
    labels = np.random.default_rng(seed).permutation(labels)
    indices = criteria.class_balanced(jax.random.key(seed), labels, per_class=per_class)
    assert indices.dtype == np.int32 and indices.shape == (per_class * len(counts),)
    assert len(set(indices.tolist())) == len(indices)
    classes, found = np.unique(labels[indices], return_counts=True)
    np.testing.assert_array_equal(classes, np.unique(labels))
    np.testing.assert_array_equal(found, per_class)


def test_every_example_is_equally_likely_in_every_place():
    labels = np.array([0, 1, 1, 0, 1])
    draws = np.array(
        [criteria.class_balanced(jax.random.key(seed), labels, per_class=1) for seed in range(600)]
    )
    chosen = np.bincount(draws.ravel(), minlength=5)
    # 300 of each in class 0, 200 in class 1; the standard deviation is at most 12.3.
    np.testing.assert_allclose(chosen, [300, 200, 200, 300, 200], atol=45)
    assert abs(np.mean(labels[draws[:, 0]]) - 0.5) < 0.075  # Classes come in random order.


def test_the_subset_is_that_of_the_key():
    labels = np.arange(1000) % 10
    first, again, other = (
        criteria.class_balanced(jax.random.key(seed), labels) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert len(first) == 100 and not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("labels", "per_class", "error", "message"),
    [
        ([0, 0, 7], 2, ValueError, "per_class: 2 examples .* asked for, and class 7 has 1"),
        ([0, 1], 0, ValueError, "per_class: expected an integer of at least 1, got 0"),
        ([0.0, 1.0], 1, TypeError, "labels: expected integers, got float"),
        ([[0, 1]], 1, ValueError, r"labels: .* got shape \(1, 2\)"),
        (np.zeros(0, int), 1, ValueError, r"labels: .* got shape \(0,\)"),
    ],
)
def test_wrong_arguments_are_named(labels, per_class, error, message):
    with pytest.raises(error, match=message):
        criteria.class_balanced(jax.random.key(0), labels, per_class=per_class)


def test_the_pruning_batch_is_normalised_and_balanced_or_refused():
    dataset = data.load("digits")
    inputs, labels = data.pruning_batch(dataset, jax.random.key(0), 3)
    assert inputs.shape == (30, 8, 8, 1) and inputs.dtype == np.float32
    np.testing.assert_array_equal(np.bincount(labels), 3)
    pixels = np.rint((np.asarray(inputs) * dataset.std[0] + dataset.mean[0]) * 255)
    pairs = zip(dataset.train_images, dataset.train_labels, strict=True)
    originals = {(image.tobytes(), int(label)) for image, label in pairs}
    drawn = zip(pixels.astype(np.uint8), labels, strict=True)
    assert all((image.tobytes(), int(label)) in originals for image, label in drawn)

    with pytest.raises(UserError, match="cannot draw a subset of digits: per_class: 1000 examples"):
        data.pruning_batch(dataset, jax.random.key(0), 1000)
