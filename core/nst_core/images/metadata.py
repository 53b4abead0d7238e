"""Image metadata, carried from the content image to the stylized image.

This covers EXIF (with GPS and maker notes), XMP, resolution and ICC profile. What would be wrong for the new file is
left out: the orientation, since the pixels are upright; thumbnails, since they show the old image; and how the old file
stored its pixels. IPTC records and text chunks of PNGs are not carried.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

MAX_SEGMENT_BYTES = 65_533
"""Maximum payload of a JPEG segment."""

_MAX_XMP_BYTES = {
    "JPEG": MAX_SEGMENT_BYTES - len(b"http://ns.adobe.com/xap/1.0/\0"),
    "PNG": PngImagePlugin.MAX_TEXT_CHUNK,
}
"""Maximum XMP by format; Pillow treats a PNG with a longer text as damaged."""

_XMP_THUMBNAILS = re.compile(rb"<(xmp|xap):Thumbnails>.*?</\1:Thumbnails>", re.DOTALL)

_STORAGE = frozenset(
    {
        *range(254, 267),  # size, depth, compression, photometric interpretation
        *(273, *range(277, 282), 284, *range(288, 294), 301),  # strips, planes, grey curves
        *(*range(317, 326), 330, *range(332, 344), 347),  # predictor, palette, tiles, sub-files, inks, sample formats
        *(*range(512, 522), 529, 530, 532),  # JPEG inside TIFF, YCbCr
        *(700, 33723, 34377, 34675, 37724),  # XMP and ICC, which are carried by themselves; IPTC, Photoshop's layers
    }
)
"""Tags of a TIFF's first directory that describe how its pixels are stored."""


@dataclass(frozen=True)
class Metadata:
    """Metadata of a file: `exif` with its header as in a JPEG, an `xmp` packet, an ICC `profile`; empty if absent.

    `dpi` is the horizontal and vertical resolution in pixels per inch. `kind` is Pillow's name of the file's format
    (`JPEG`). `process` describes how the image was made, in one line of ASCII: EXIF's ProcessingSoftware.
    """

    exif: bytes = b""
    xmp: bytes = b""
    profile: bytes = b""
    dpi: tuple[float, float] | None = None
    kind: str = ""
    process: str = ""


def read_metadata(image: Image.Image) -> Metadata:
    """Read the metadata of a decoded, upright image; a damaged part counts as missing."""
    info = image.info
    return Metadata(
        exif=_exif(image),
        xmp=_XMP_THUMBNAILS.sub(b"", _bytes(info.get("xmp"))),
        profile=_bytes(info.get("icc_profile")),
        dpi=_dpi(info.get("dpi")),
        kind="JPEG" if image.format == "MPO" else image.format or "",
        process=read_process(image),
    )


def read_process(image: Image.Image) -> str:
    """Read EXIF's ProcessingSoftware of an opened image; empty if it has none."""
    try:
        process = image.getexif().get(ExifTags.Base.ProcessingSoftware, "")
    except Exception:  # see _exif
        return ""
    return process if isinstance(process, str) else ""


def save_options(metadata: Metadata, kind: str, width: int, height: int) -> dict[str, Any]:
    """Return the arguments of Pillow's `save` that write the metadata which a file of this format can hold.

    A JPEG holds 64 KiB each of EXIF and XMP, a PNG 1 MiB of XMP; larger parts are left out. WebP has no resolution.
    """
    exif = _rewritten(metadata.exif, metadata.process, width, height)
    if kind == "JPEG" and len(exif) > MAX_SEGMENT_BYTES:
        exif = _rewritten(b"", metadata.process, width, height)
    options: dict[str, Any] = {"exif": exif} if exif else {}
    if metadata.dpi and kind != "WEBP":
        options["dpi"] = metadata.dpi
    xmp = metadata.xmp.decode("utf-8", "replace").encode() if kind == "PNG" else metadata.xmp
    if xmp and len(xmp) <= _MAX_XMP_BYTES.get(kind, len(xmp)):
        if kind == "PNG":
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
        else:
            options["xmp"] = xmp
    return options


def _exif(image: Image.Image) -> bytes:
    """Return the EXIF directories without the tags that would be wrong for another file."""
    try:
        exif = image.getexif()
        for tag in _STORAGE & set(exif):
            del exif[tag]
        if ExifTags.Base.Orientation in exif:
            exif[ExifTags.Base.Orientation] = 1
        return exif.tobytes() if len(exif) else b""
    except Exception:  # a damaged directory can raise anything, and the image is still whole
        return b""


def _rewritten(data: bytes, process: str, width: int, height: int) -> bytes:
    """Return the EXIF data with the new file's size and process; only these if the rest cannot be written."""
    exif = Image.Exif()
    try:
        exif.load(data)
        inner = exif.get_ifd(ExifTags.IFD.Exif)
        for tag, side in ((ExifTags.Base.ExifImageWidth, width), (ExifTags.Base.ExifImageHeight, height)):
            if tag in inner:
                inner[tag] = side
        if process:
            exif[ExifTags.Base.ProcessingSoftware] = process
        return exif.tobytes() if len(exif) else b""
    except Exception:  # see _exif
        return _rewritten(b"", process, width, height) if data else b""


def _dpi(value: Any) -> tuple[float, float] | None:
    try:
        across, down = (float(number) for number in value)
    except (TypeError, ValueError, ArithmeticError):
        return None
    sound = all(math.isfinite(number) and 1 <= number < 65_536 for number in (across, down))
    return (across, down) if sound else None


def _bytes(value: Any) -> bytes:
    return value.encode("utf-8", "replace") if isinstance(value, str) else bytes(value) if value else b""
