"""From the bytes of an image file to pixels, cropped at random or in the centre, on the host.

This runs in worker processes and needs NumPy and Pillow only.
"""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG")
"""What is decoded. Pillow would decode anything else by its contents, and EPS by Ghostscript."""

RESAMPLING = Image.Resampling.BILINEAR
"""With antialiasing, torchvision's default for images."""


class RandomCrop(NamedTuple):
    """Augmentation for training: a random part of the image, resized, and mirrored half the time.

    Attributes:
        size: pixels a side of the result.
        scale: smallest and largest share of the image's area, in (0, 1].
        ratio: smallest and largest width / height.
    """

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float]

    def __call__(self, encoded: bytes, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 pixels (size, size, 3); a ValueError if the bytes are no image."""
        image = decode(encoded)
        box = crop_box(rng, *image.size, scale=self.scale, ratio=self.ratio)
        image = image.crop(box).resize((self.size, self.size), RESAMPLING)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image)


class CentreCrop(NamedTuple):
    """For evaluation: the shorter side is resized, then the centre cut out.

    Attributes:
        size: pixels a side of the result.
        shorter_side: of the resized image, at least `size`.
    """

    size: int
    shorter_side: int

    def __call__(self, encoded: bytes) -> np.ndarray:
        """Returns uint8 pixels (size, size, 3); a ValueError if the bytes are no image."""
        image = decode(encoded)
        width, height = (self.shorter_side * side // min(image.size) for side in image.size)
        image = image.resize((width, height), RESAMPLING)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))


def crop_box(
    rng: np.random.Generator,
    width: int,
    height: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Draws a part of an image as torchvision's RandomResizedCrop does.

    Its share of the area is uniform in `scale`, the logarithm of its width / height uniform in
    `ratio`, its place uniform among those inside the image. If ten draws do not fit, it is the
    largest part in the centre whose width / height is within `ratio`.

    Returns:
        left, top, right and bottom, the latter two exclusive, as Pillow counts.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def decode(
    encoded: bytes, *, mode: str = "RGB", size: tuple[int, ...] | None = None
) -> Image.Image:
    """Decodes an image file; greyscale, CMYK and palettes become what Pillow calls `mode`.

    Width and height other than `size` are refused before anything is decoded.

    Raises:
        ValueError: the bytes are no image, or not all of one, or it has another size.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if size not in (None, image.size):
                raise ValueError(f"{image.size} pixels, expected {size}")
            return image.convert(mode)
    # What Pillow raises for damaged files; SyntaxError is for PNG chunks.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"no image, or a damaged one ({error})") from error
