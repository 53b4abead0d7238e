"""Open a file as a Pillow image that can be decoded safely.

Pillow reads most formats, libheif reads HEIC. Raw camera files are refused first, since Pillow would read their
thumbnail, and long texts of PNGs are left out, since Pillow would treat them as damage.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import (  # each plugin adds its format to `Image.OPEN`
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from nst_core.errors import ImageError
from nst_core.images import png, tiff
from nst_core.images.formats import RAW_SUFFIXES
from nst_core.images.raw import raw_error, refuse_raw

MAX_JPEG_SCANS = 100
"""Each scan costs a pass over the whole image and as little as a dozen bytes."""

ALWAYS_ALLOWED_TILE_PIXELS = 1_000_000
"""Tiles of a TIFF may be larger than a small image."""

PLUGINS = {
    "AVIF": AvifImagePlugin,
    "BMP": BmpImagePlugin,
    "GIF": GifImagePlugin,
    "JPEG": JpegImagePlugin,
    "PNG": PngImagePlugin,
    "TIFF": TiffImagePlugin,
    "WEBP": WebPImagePlugin,
}
PILLOW_FORMATS = tuple(PLUGINS)
"""Pillow's names of the formats that it reads for nst. It knows more, and starts Ghostscript for one of them."""

READABLE_FORMATS = tuple(sorted((*PILLOW_FORMATS, "HEIF")))
"""Formats that nst reads, whatever the file's suffix."""


@contextmanager
def open_file(source: Path | BinaryIO) -> Iterator[Image.Image]:
    """Open a file in one of `READABLE_FORMATS`: read its headers, decode no pixels.

    Raises `ImageError` for a raw camera file, `UnidentifiedImageError` for another format, and whatever Pillow raises
    for a damaged file: see `image_errors`.
    """
    with ExitStack() as stack:
        stream = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
        suffix = source.suffix.lower() if isinstance(source, Path) else ""
        stream.seek(0)
        head = stream.read(64)
        refuse_raw(stream, head, suffix)
        if head.startswith(png.SIGNATURE):
            stream = png.without_texts(stream)
        stream.seek(0)
        try:
            image = _open_heif(stream) if _is_heif(head) else _open_with_pillow(stream)
        except UnidentifiedImageError:
            if suffix in RAW_SUFFIXES:
                raise raw_error(suffix) from None
            if head.startswith(tiff.SIGNATURES):
                raise ImageError(tiff.explain_unreadable(stream)) from None
            if _brands(head) & _AVIF:
                raise ImageError("a damaged AVIF file") from None
            raise
        stack.enter_context(image)
        if image.format == "TIFF":
            tiff.to_largest(image)
        yield image


@contextmanager
def image_errors(name: str) -> Iterator[None]:
    """Turn any exception of Pillow's into a one-line `ImageError` that begins with `name`."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        readable = ", ".join(READABLE_FORMATS)
        raise ImageError(f"{name}: not an image in a supported format ({readable})") from None
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to decode it") from error
    except Exception as error:  # a damaged file can make Pillow's decoders raise anything
        raise ImageError(f"{name}: damaged or unreadable ({reason(error)})") from error


def reason(error: Exception) -> str:
    """Return the first line of an error's message, or its type's name if it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _open_with_pillow(stream: BinaryIO) -> Image.Image:
    """Open one of `PILLOW_FORMATS` as `Image.open` does, without its process-wide pixel limit."""
    head = stream.read(16)
    for name in PILLOW_FORMATS:
        make, accepts = Image.OPEN[name]
        if accepts is None or accepts(head) is True:
            stream.seek(0)
            try:
                return make(stream, "")
            except (SyntaxError, IndexError, TypeError, struct.error):  # not of this format after all
                continue
    raise UnidentifiedImageError("cannot identify the image file")


def check_limits(image: Image.Image, max_pixels: int) -> None:
    """Raise `ImageError` if the headers announce too much to decode, as those of a small file can.

    An AVIF stream may hold more than its header says: libavif stops at 16384x16384 pixels.
    """
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{width}x{height} is {width * height / 1e6:.4g} megapixels, over the "
            f"limit of {max_pixels / 1e6:.4g}; raise it with --max-pixels"
        )
    if image.format == "TIFF":
        across, down = (int(image.tag_v2.get(tag, 0)) for tag in (tiff.TILE_WIDTH, tiff.TILE_LENGTH))  # type: ignore[attr-defined]
        if across * down > max(max_pixels, ALWAYS_ALLOWED_TILE_PIXELS):
            raise ImageError(
                f"its tiles of {across}x{down} pixels are over the limit of {max_pixels / 1e6:.4g} megapixels; "
                "raise it with --max-pixels"
            )
    if image.format in ("JPEG", "MPO") and (scans := _jpeg_scans(image)) > MAX_JPEG_SCANS:
        raise ImageError(f"its {scans} scans are over the limit of {MAX_JPEG_SCANS}; save it again as PNG")


_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA


def _jpeg_scans(image: Image.Image) -> int:
    """Count the scans of the first JPEG in an opened file."""
    stream = image.fp  # type: ignore[attr-defined]
    before = stream.tell()
    stream.seek(0)
    data = stream.read()
    stream.seek(before)
    scans, at = 0, 2
    while marker := _MARKER.search(data, at):
        kind, at = data[marker.end() - 1], marker.end()
        if kind == _END_OF_IMAGE:
            break
        scans += kind == _START_OF_SCAN
        at += int.from_bytes(data[at : at + 2], "big")
    return scans


_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF = {b"avif", b"avis"}
_EITHER = {b"mif1", b"msf1"}


def _brands(head: bytes) -> set[bytes]:
    """Return the major and compatible brands of a file in the container format of HEIC and AVIF."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}


def _is_heif(head: bytes) -> bool:
    """Return whether libheif reads a file that begins like this; Pillow reads AVIF."""
    brands = _brands(head)
    return bool(brands) and (head[8:12] in _HEIF or (head[8:12] in _EITHER and not brands & _AVIF))


def _open_heif(stream: BinaryIO) -> Image.Image:
    """Open HEIF without `Image.open`, which needs a process-wide registration for it."""
    from pillow_heif import HeifImageFile

    image: Image.Image = HeifImageFile(stream)  # type: ignore[no-untyped-call]
    return image
