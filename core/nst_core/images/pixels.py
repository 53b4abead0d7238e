"""Decoded images, and operations on their pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nst_core.images.metadata import Metadata

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating]

LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)
"""Luminance weights of red, green and blue: the Y of YIQ (Rec. 601)."""

BAND_ROWS = 256
"""Rows that are converted to floating point at a time; a whole large image would fill the memory."""


@dataclass(frozen=True, eq=False)
class ImageData:
    """sRGB pixels `uint8 [H, W, 3]` and, if the file has transparency, alpha `uint8 [H, W]`.

    `metadata` comes from the file, and goes into files that are written from this image.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    metadata: Metadata = Metadata()

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.pixels.shape[1])


def resize(image: ImageData, width: int, height: int) -> ImageData:
    """Resize to exactly `width` x `height` pixels by Lanczos resampling with antialiasing."""
    if (image.width, image.height) == (width, height):
        return image

    def scale(array: Pixels) -> Pixels:
        return np.array(Image.fromarray(array).resize((width, height), Image.Resampling.LANCZOS))

    alpha = None if image.alpha is None else scale(image.alpha)
    return replace(image, pixels=scale(image.pixels), alpha=alpha)


def fit(image: ImageData, width: int, height: int) -> ImageData:
    """Scale the image to cover `width` x `height` and cut out the middle: no distortion, no border."""
    scale = max(width / image.width, height / image.height)
    across, down = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    large = resize(image, across, down)
    left, top = (across - width) // 2, (down - height) // 2
    window = np.s_[top : top + height, left : left + width]
    alpha = None if large.alpha is None else large.alpha[window]
    return replace(large, pixels=np.ascontiguousarray(large.pixels[window]), alpha=alpha)


def with_pixels(image: ImageData, pixels: Pixels) -> ImageData:
    """Return `pixels` with the image's alpha channel and metadata."""
    return replace(image, pixels=pixels)


def blend(content: Pixels, stylized: Pixels, strength: float) -> Pixels:
    """Blend the content (`strength` 0) and the stylized image (1), both `uint8 [H, W, 3]`."""
    return _in_bands(lambda below, above: below + strength * (above - below), content, stylized)


def keep_colors(content: Pixels, stylized: Pixels) -> Pixels:
    """Combine the stylized image's luminance with the content image's chrominance, both `uint8 [H, W, 3]`.

    "Luminance-only transfer" of Gatys et al. 2016, *Preserving Color in Neural Artistic Style Transfer*, applied to
    sRGB directly, as in the paper.
    """
    return _in_bands(_with_luminance, content, stylized)


def _with_luminance(content: Floats, stylized: Floats) -> Floats:
    difference: Floats = np.dot(stylized - content, LUMA_WEIGHTS)
    return content + difference[..., None]


def side_by_side(images: Iterable[Pixels], *, gap: int = 8) -> Pixels:
    """Join images of equal height in a row, with `gap` white columns between them."""
    row: list[Pixels] = []
    for pixels in images:
        if row:
            row.append(np.full((pixels.shape[0], gap, 3), 255, np.uint8))
        row.append(pixels)
    return np.concatenate(row, axis=1)


def _in_bands(formula: Callable[[Floats, Floats], Floats], content: Pixels, stylized: Pixels) -> Pixels:
    """Apply a formula to values from 0 to 255 in floating point, a band of rows at a time."""
    result = np.empty_like(stylized)
    for top in range(0, len(result), BAND_ROWS):
        rows = slice(top, top + BAND_ROWS)
        band = formula(content[rows].astype(np.float32), stylized[rows].astype(np.float32))
        result[rows] = np.clip(band + 0.5, 0, 255).astype(np.uint8)
    return result
