"""Images in memory, averaged down to fewer pixels."""

from __future__ import annotations

import numpy as np

from experiments.shell.errors import UserError


def average_down(images: np.ndarray, size: int) -> np.ndarray:
    """Averages blocks of pixels, rounding to the nearest integer, halves upwards.

    Args:
        images: uint8, (N, side, side, channels).
        size: pixels a side of the result; a divisor of `side`.

    Returns:
        uint8, (N, size, size, channels); `images` itself if that is its size.

    Raises:
        UserError: `size` is no divisor.
    """
    count, side, _, channels = images.shape
    if side == size:
        return images
    if size < 1 or side % size:
        divisors = [str(divisor) for divisor in range(1, side + 1) if side % divisor == 0]
        raise UserError(
            f"--image-size: {size} does not divide the {side} pixels of the images. "
            f"Possible: {', '.join(divisors)}"
        )
    block = side // size
    blocks = images.reshape(count, size, block, size, block, channels)
    sums = blocks.sum((2, 4), dtype=np.uint32)
    return ((sums + block**2 // 2) // block**2).astype(np.uint8)
