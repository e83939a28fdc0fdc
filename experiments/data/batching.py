"""Which images form which batch, as arrays of indices."""

from __future__ import annotations

import jax
import numpy as np


def epoch_batches(key: jax.Array, num_examples: int, batch_size: int) -> np.ndarray:
    """Shuffles the training set and cuts it into full batches.

    The last num_examples % batch_size images of the shuffled order are left out, so that all
    batches have one shape; the next epoch's order, from another key, leaves out others.

    Returns:
        int32 indices, (num_examples // batch_size, batch_size); no index occurs twice.

    Raises:
        ValueError: `batch_size` is not in [1, num_examples].
    """
    if not 1 <= batch_size <= num_examples:
        raise ValueError(f"batch_size: expected 1 to {num_examples} images, got {batch_size}")
    order = np.asarray(jax.random.permutation(key, num_examples), np.int32)
    num_batches = num_examples // batch_size
    return order[: num_batches * batch_size].reshape(num_batches, batch_size)


def rows_of(part: tuple[int, int], batch_size: int) -> slice:
    """Returns the rows of a batch that are part `index` of `count` equal ones, of a process each.

    >>> rows_of((1, 2), 6)
    slice(3, 6, None)
    """
    index, count = part
    size = batch_size // count
    return slice(index * size, (index + 1) * size)


def eval_batches(num_examples: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the test set into batches of one shape that cover every example once.

    Returns:
        int32 indices and boolean `is_real`, both (number of batches, batch_size). The last batch
        is filled up with index 0, where `is_real` is False.
    """
    num_batches = -(-num_examples // batch_size)
    slots = np.arange(num_batches * batch_size, dtype=np.int32).reshape(num_batches, batch_size)
    is_real = slots < num_examples
    return np.where(is_real, slots, 0), is_real
