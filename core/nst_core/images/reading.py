"""Read images from files and from Pillow."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from nst_core.errors import ImageError
from nst_core.images.colors import split_alpha, to_8_bits, to_srgb
from nst_core.images.decoding import check_limits, image_errors, open_file
from nst_core.images.formats import DEFAULT_MAX_PIXELS
from nst_core.images.metadata import read_metadata, read_process
from nst_core.images.pixels import ImageData, resize
from nst_core.images.raw import refuse_raw_image

log = logging.getLogger(__name__)


def open_image(
    source: Path | BinaryIO, *, max_pixels: int = DEFAULT_MAX_PIXELS, max_side: int | None = None
) -> ImageData:
    """Decode an image as upright sRGB with 8 bits per channel.

    `max_pixels` is checked on the header, before anything is decoded. `max_side` shrinks a larger image to that many
    pixels on its longer side. The first of several frames is used. Colours are converted from an embedded ICC profile
    (RGB, CMYK or grey); colours outside sRGB are clipped. 16 bits per channel become 8, as does 32-bit grey, whose
    white is the first of 1, 255 and 65,535 that its values fit in.

    Several threads may call this at once. Pillow's process-wide settings are unchanged: its limit
    (`PIL.Image.MAX_IMAGE_PIXELS`) still holds inside its decoders of GIF, WebP and tiled TIFF. Raises `ImageError` for
    anything that is not a complete, readable image within the limits.
    """
    name = str(source) if isinstance(source, Path) else getattr(source, "name", "the image")
    if isinstance(source, Path) and not os.path.isfile(source):  # noqa: PTH113  a name may be too long for Path.is_file
        what = "is a folder, not an image" if os.path.isdir(source) else "no such file"  # noqa: PTH112
        raise ImageError(f"{name}: {what}")
    with image_errors(name), open_file(source) as image:
        log.debug("%s: %s, %dx%d, %s", name, image.format, *image.size, image.mode)
        check_limits(image, max_pixels)
        if max_side is not None and image.format in ("JPEG", "MPO"):
            image.draft("RGB", (max_side, max_side))  # JPEG decodes straight to a smaller size
        return _shrink(_decode(image), max_side)


def from_pillow(image: Image.Image) -> ImageData:
    """Convert a Pillow image as `open_image` converts its file: upright, sRGB, 8 bits per channel.

    The given image is unchanged. Raises `ImageError` if it cannot be decoded or converted.
    """
    with image_errors("the image"):
        refuse_raw_image(image)
        own = image.copy()
        own.format = image.format
        with suppress(Exception):  # damaged metadata counts as missing
            if image.format == "TIFF":  # its own tags are its EXIF, and a copy has none of them
                own.info["exif"] = image.getexif().tobytes()
        return _decode(own)


def process_of_file(path: Path) -> str:
    """Return `Metadata.process` of an image file without decoding it; empty if it has none or is not an image."""
    try:
        with open_file(path) as image:
            return read_process(image) if "exif" in image.info else ""
    except Exception:  # as in open_image
        return ""


def _decode(image: Image.Image) -> ImageData:
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    metadata = read_metadata(image)
    colors, alpha = split_alpha(image)
    return ImageData(np.array(to_srgb(to_8_bits(colors), metadata.profile)), alpha, metadata)


def _shrink(image: ImageData, max_side: int | None) -> ImageData:
    longer = max(image.width, image.height)
    if max_side is None or longer <= max_side:
        return image
    scale = max_side / longer
    return resize(image, max(1, round(image.width * scale)), max(1, round(image.height * scale)))
