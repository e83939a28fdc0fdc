"""The images that a search looks at, if its criterion needs data."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from experiments.data.augmentation import normalise
from experiments.data.loading import Dataset
from experiments.data.streaming import StreamedDataset
from experiments.shell.errors import UserError
from ntksap_jax import criteria


def pruning_batch(
    dataset: Dataset | StreamedDataset, key: jax.Array, per_class: int
) -> tuple[jax.Array, jax.Array]:
    """Draws training images, equally many of each class, without augmentation.

    Args:
        dataset: from `load`.
        key: PRNG key; it decides which.
        per_class: images of each class.

    Returns:
        Normalised float32 images (N, height, width, channels) and int32 labels (N,), in random
        order.

    Raises:
        UserError: a class has fewer images.
    """
    try:
        indices = criteria.class_balanced(key, dataset.train_labels, per_class=per_class)
    except ValueError as error:
        raise UserError(f"cannot draw a subset of {dataset.name}: {error}") from error
    inputs = normalise(
        jnp.asarray(dataset.train_images_at(indices)), mean=dataset.mean, std=dataset.std
    )
    return inputs, jnp.asarray(dataset.train_labels[indices])
