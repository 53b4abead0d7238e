"""Encode images, and write them atomically."""

from __future__ import annotations

import io
import logging
from pathlib import Path

from PIL import Image

from nst_core.errors import InputError
from nst_core.files import atomic_write
from nst_core.images.colors import from_srgb
from nst_core.images.decoding import reason
from nst_core.images.formats import check_size, image_format
from nst_core.images.metadata import save_options
from nst_core.images.pixels import ImageData

log = logging.getLogger(__name__)


def save_image(image: ImageData, path: Path, *, quality: int = 92) -> None:
    """Write JPEG, PNG or WebP by the path's suffix; the file appears whole or not at all.

    See `encode_image`. Raises `InputError` for another suffix, and `WriteError` if the file cannot be written.
    """
    data = encode_image(image, image_format(path), quality=quality)
    with atomic_write(path) as beside:
        beside.write_bytes(data)
    log.debug("wrote %s: %dx%d, %d bytes", path, image.width, image.height, len(data))


def encode_image(image: ImageData, kind: str, *, quality: int = 92) -> bytes:
    """Encode an image as a `JPEG`, `PNG` or `WEBP` file with 8 bits per channel and its metadata.

    The pixels are converted back to the image's RGB profile, which is embedded. A CMYK or grey profile, or one that
    only converts to sRGB, cannot hold a stylized image: the file is then sRGB with an sRGB profile. In a JPEG,
    transparent areas are white. Raises `InputError` for an image that such a file cannot hold; see `check_size`.
    """
    check_size(image.width, image.height, kind)
    encoded, profile = from_srgb(Image.fromarray(image.pixels), image.metadata.profile)
    if image.alpha is not None:
        encoded.putalpha(Image.fromarray(image.alpha))
        if kind == "JPEG":
            white = Image.new("RGBA", encoded.size, "white")
            encoded = Image.alpha_composite(white, encoded).convert("RGB")
    options = save_options(image.metadata, kind, image.width, image.height)
    if profile:
        options["icc_profile"] = profile
    if kind == "JPEG":
        options["subsampling"] = 0  # strokes are colour edges: keep 4:4:4
    buffer = io.BytesIO()
    try:
        encoded.save(buffer, kind, quality=quality, **options)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's encoders raise errors of many kinds
        raise InputError(f"cannot encode {image.width}x{image.height} as {kind}: {reason(error)}") from error
    return buffer.getvalue()
