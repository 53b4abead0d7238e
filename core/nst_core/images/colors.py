"""Convert between a file's colours and 8-bit sRGB, which the rest of nst uses."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from nst_core.errors import ImageError
from nst_core.images.pixels import BAND_ROWS, Pixels


def split_alpha(image: Image.Image) -> tuple[Image.Image, Pixels | None]:
    """Split an image into its colours and its alpha channel, `uint8 [H, W]` or None if it is opaque."""
    if "transparency" in image.info and image.mode in ("1", "L", "P", "RGB"):
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    if image.mode in ("PA", "RGBa", "La"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode not in ("RGBA", "LA"):
        return image, None
    alpha = np.array(image.getchannel("A"))
    return image.convert(image.mode[:-1]), None if alpha.min() == 255 else alpha


def to_8_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit, 32-bit and floating-point grey to 8 bits, and a palette to its colours."""
    if image.mode.startswith("I;16"):
        return _grey_of_8_bits(np.asarray(image), 65_535)
    if image.mode in ("I", "F"):
        values = np.asarray(image)
        return _grey_of_8_bits(values, _white(values))
    return image.convert({"1": "L", "P": "RGB"}[image.mode]) if image.mode in ("1", "P") else image


def _white(values: NDArray[np.generic]) -> int:
    """Return the value of white in 32-bit grey, which no file states: 1, 255 or 65,535.

    It is the first of them that the highest value does not exceed. Floating point may exceed it by a factor of two,
    since resampling makes edges overshoot.
    """
    finite = values[np.isfinite(values)]
    highest = float(finite.max()) if finite.size else 0.0
    slack = 2 if values.dtype.kind == "f" else 1
    for white in (1, 255, 65_535):
        if highest <= white * slack:
            return white
    raise ImageError(
        f"its values go up to {highest:.6g}, so its white is unknown; save it with 8 or 16 bits per channel"
    )


def _grey_of_8_bits(values: NDArray[Any], white: int) -> Image.Image:
    """Scale values from 0 to `white` to 8-bit grey, a band of rows at a time; clip others, NaN becomes black."""
    result = np.empty(values.shape, np.uint8)
    for top in range(0, len(result), BAND_ROWS):
        band = np.nan_to_num(values[top : top + BAND_ROWS].astype(np.float64)).clip(0, white)
        result[top : top + BAND_ROWS] = band * (255 / white) + 0.5
    return Image.fromarray(result)


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert to sRGB by the embedded ICC profile if it fits the pixels; assume sRGB without a profile."""
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            return _converted(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"))
        except (ImageCms.PyCMSError, OSError):
            pass  # a profile of another colour space or a broken one: the pixels are still an image
    if image.mode == "LAB":
        return _converted(image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
    return image if image.mode == "RGB" else image.convert("RGB")


def from_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, bytes]:
    """Convert from sRGB to `profile`; return the image and the profile to embed."""
    if not profile:
        return image, b""
    try:
        target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return _converted(image, ImageCms.createProfile("sRGB"), target), profile
    except (ImageCms.PyCMSError, OSError):
        return image, _srgb_profile()


def _converted(image: Image.Image, source: object, target: object) -> Image.Image:
    converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")  # type: ignore[arg-type]
    assert converted is not None  # only a conversion in place returns None
    return converted


@cache
def _srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
