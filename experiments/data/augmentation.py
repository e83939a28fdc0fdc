"""Images as arrays: random crop, flip and normalisation in the jitted step; other sizes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shell.errors import UserError


def augment(
    key: jax.Array,
    images: jax.Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    crop_padding: int = 4,
    flip: bool = True,
) -> jax.Array:
    """Crops each image at random, mirrors half of them left to right, and normalises.

    As in torchvision, the zeros are put around the raw image, before normalisation: the border has
    the value -mean / std and not 0. All (2 crop_padding + 1)^2 crops are equally likely.

    Args:
        key: PRNG key; every image draws its own crop and flip.
        images: uint8, (N, height, width, channels).
        mean: per channel, of pixels scaled to [0, 1].
        std: likewise.
        crop_padding: zeros on each side before the crop; 0 for no crop.
        flip: whether to mirror.

    Returns:
        float32, of the shape of `images`.

    Raises:
        ValueError: `images` are not raw pixels.
    """
    crop_key, flip_key = jax.random.split(key)
    if crop_padding:
        images = _random_crop(crop_key, images, crop_padding)
    if flip:
        mirror = jax.random.bernoulli(flip_key, shape=(images.shape[0], 1, 1, 1))
        images = jnp.where(mirror, images[:, :, ::-1], images)
    return normalise(images, mean=mean, std=std)


def normalise(images: jax.Array, *, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns (images / 255 - mean) / std as float32, for uint8 images (N, H, W, channels).

    Raises:
        ValueError: `images` are not raw pixels.
    """
    if images.dtype != jnp.uint8:
        raise ValueError(f"images: expected raw pixels, uint8 from 0 to 255, got {images.dtype}")
    scaled = images.astype(jnp.float32) / 255
    return (scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes square images: down by averages of whole blocks, up by linear interpolation.

    Returns:
        uint8, (N, size, size, channels), rounded to the nearest integer, means that lie between two
        integers upwards.

    Raises:
        UserError: `size` is smaller and no divisor.
    """
    count, side, _, channels = images.shape
    if side == size:
        return images
    if size < 1 or size < side and side % size:
        divisors = ", ".join(str(n) for n in range(1, side + 1) if side % n == 0)
        raise UserError(
            f"--image-size: {size} does not divide the {side} pixels of the images. "
            f"Possible: {divisors}, or more"
        )
    if size < side:
        block = side // size
        sums = images.reshape(count, size, block, size, block, channels).sum((2, 4), np.uint32)
        return ((sums + block**2 // 2) // block**2).astype(np.uint8)
    resized = np.empty((count, size, size, channels), np.uint8)
    for start in range(0, count, 1000):  # In floating point, all images would take gigabytes.
        piece = images[start : start + 1000].astype(np.float32)
        interpolated = jax.image.resize(piece, (len(piece), size, size, channels), "linear")
        resized[start : start + 1000] = np.rint(interpolated)
    return resized


def _random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    count, *shape = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(key, (count, 2), 0, 2 * padding + 1)

    # One slice an image: on CPU 10 times faster than choosing among shifted copies of the batch.
    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), shape)

    return jax.vmap(crop)(padded, corners)
