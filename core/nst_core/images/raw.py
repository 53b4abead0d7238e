"""Refuse raw camera files, of which Pillow would read only the thumbnail."""

from __future__ import annotations

from typing import BinaryIO

from PIL import Image

from nst_core.errors import ImageError
from nst_core.images import tiff
from nst_core.images.formats import RAW_SUFFIXES

_SIGNATURES = {
    b"FUJIFILMCCD-RAW": ".raf",
    b"IIRO": ".orf",
    b"IIRS": ".orf",
    b"MMOR": ".orf",
    b"IIU\0": ".rw2",
    b"\0MRM": ".mrw",
    b"FOVb": ".x3f",
}

_SENSOR_DATA = (32_803, 34_892)
"""Photometric interpretations: a colour filter array, and linear raw data."""


def raw_error(suffix: str) -> ImageError:
    """Return the error for a raw file; it names the type if the suffix tells it."""
    kind = f" ({suffix[1:].upper()})" if suffix in RAW_SUFFIXES else ""
    return ImageError(f"a raw camera file{kind}, which nst does not develop; export it as JPEG or TIFF")


def refuse_raw(stream: BinaryIO, head: bytes, suffix: str) -> None:
    """Raise `ImageError` for a raw file. Most are TIFFs whose first image is a thumbnail, which Pillow would read."""
    for magic, kind in _SIGNATURES.items():
        if head.startswith(magic):
            raise raw_error(kind)
    if head[4:12] == b"ftypcrx ":
        raise raw_error(".cr3")
    if head[6:14] == b"HEAPCCDR":
        raise raw_error(".crw")
    if not head.startswith(tiff.SIGNATURES):
        return
    if head[8:10] == b"CR":
        raise raw_error(".cr2")
    for number, tags in enumerate(tiff.directories(stream)):
        if tiff.DNG_VERSION in tags:
            raise raw_error(".dng")
        thumbnail = number == 0 and tiff.first_value(tags, tiff.SUBFILE_TYPE) & 1 and tiff.SUB_IFDS in tags
        if thumbnail or tiff.first_value(tags, tiff.PHOTOMETRIC) in _SENSOR_DATA:
            raise raw_error(suffix)


def refuse_raw_image(image: Image.Image) -> None:
    """Raise `ImageError` for a raw file that Pillow has opened: the image is its thumbnail."""
    tags = getattr(image, "tag_v2", {})
    if tiff.DNG_VERSION in tags or (tiff.SUB_IFDS in tags and tiff.is_reduced(image)):
        raise raw_error(".dng" if tiff.DNG_VERSION in tags else "")
