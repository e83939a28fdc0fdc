"""Class-balanced subsets of labelled data, for the criteria that look at data."""

from __future__ import annotations

import numbers

import jax
import numpy as np
from numpy.typing import ArrayLike

from ntksap_jax._draws import typed_key


def class_balanced(key: jax.Array, labels: ArrayLike, *, per_class: int = 10) -> np.ndarray:
    """Draws exactly `per_class` examples of each class, without replacement.

    The papers that prune by data take 10 images a class (SNIP, GraSP: Lee, Ajanthan and Torr, 2019;
    Wang, Zhang and Grosse, 2020).

    Args:
        key: PRNG key; the same key and labels give the same subset.
        labels: integers, (N,). The classes are the values that occur.
        per_class: examples of each class.

    Returns:
        int32 indices into `labels`, (number of classes * per_class,), in random order, so that
        consecutive parts are random batches.

    Raises:
        TypeError: `labels` holds no integers.
        ValueError: `labels` is no vector or empty, `per_class` is smaller than 1, or a class has
            fewer examples.

    Example:
        >>> labels = np.array([7, 3, 7, 3, 3])
        >>> indices = class_balanced(jax.random.key(0), labels, per_class=2)
        >>> sorted(labels[indices].tolist())
        [3, 3, 7, 7]
    """
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels: expected integers, got {labels.dtype}")
    if labels.ndim != 1 or not labels.size:
        raise ValueError(f"labels: expected at least one in a vector, got shape {labels.shape}")
    if not isinstance(per_class, numbers.Integral) or per_class < 1:
        raise ValueError(f"per_class: expected an integer of at least 1, got {per_class!r}")
    classes, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if counts.min() < per_class:
        rarest = int(np.argmin(counts))
        raise ValueError(
            f"per_class: {per_class} examples of each class were asked for, and class "
            f"{classes[rarest]} has {counts[rarest]}"
        )
    choice_key, order_key = jax.random.split(typed_key(key))
    order = np.asarray(jax.random.permutation(choice_key, len(labels)), np.int32)
    # Sorted by class, with the random order kept within each: the first ones of a class are chosen.
    by_class = order[np.argsort(class_of[order], kind="stable")]
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.asarray(jax.random.permutation(order_key, by_class[rank < per_class]))
