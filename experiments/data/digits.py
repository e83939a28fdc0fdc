"""The 1797 handwritten digits, 8x8 pixels, that scikit-learn carries inside its package."""

from __future__ import annotations

import numpy as np

Split = tuple[np.ndarray, np.ndarray]

TEST_EVERY = 5
"""Every fifth image of a class is a test image."""


def read() -> tuple[Split, Split]:
    """Returns the training and the test split, each as (images, labels), in the original order.

    The split draws nothing at random, so that no version of anything can change it. Images are
    uint8 (N, 8, 8, 1); the original grey levels 0 to 16 are stretched to 0 to 255.
    """
    import sklearn.datasets  # takes seconds: only for who needs it

    digits = sklearn.datasets.load_digits()
    images = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int32)

    rank_in_class = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        of_class = labels == label
        rank_in_class[of_class] = np.arange(np.count_nonzero(of_class))
    is_test = rank_in_class % TEST_EVERY == 0
    return (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])
