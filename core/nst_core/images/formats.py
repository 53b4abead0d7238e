"""Image formats that nst reads and writes, by suffix and by Pillow's name, and their size limits."""

from __future__ import annotations

from pathlib import Path

from nst_core.errors import InputError

DEFAULT_MAX_PIXELS = 64_000_000
"""Default maximum pixels (height times width) of an image that is decoded."""

READABLE_SUFFIXES = frozenset(
    ".apng .avif .bmp .gif .heic .heif .hif .jfif .jpe .jpeg .jpg .mpo .png .tif .tiff .webp".split()  # noqa: SIM905
)

WRITABLE_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
"""Pillow's name of the format written for a suffix."""

RAW_SUFFIXES = frozenset(
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .gpr .iiq .k25 .kdc .mef .mos .mrw .nef "  # noqa: SIM905
    ".nrw .orf .pef .raf .raw .rw2 .rwl .sr2 .srf .srw .x3f".split()
)
"""Suffixes of raw camera files."""

UNREADABLE_SUFFIXES = RAW_SUFFIXES | frozenset(
    ".ai .cur .dds .dib .eps .exr .fits .hdr .icns .ico .j2k .jbig2 .jls .jp2 .jpf .jph "  # noqa: SIM905
    ".jpx .jxl .jxr .kra .ora .pbm .pcx .pfm .pgm .pnm .ppm .psb .psd .qoi .sgi .svg .svgz .tga .wdp .wmf .xbm "
    ".xcf .xpm".split()
)
"""Suffixes of images that nst does not read."""

MAX_SIDE_PIXELS = {"JPEG": 65_500, "WEBP": 16_383}
"""Maximum side in pixels, by Pillow's name of the format. JPEG allows 65,535, libjpeg less."""


def image_format(path: Path) -> str:
    """Return Pillow's name of the format for a path's suffix; `InputError` for one that nst does not write."""
    try:
        return WRITABLE_FORMATS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(sorted(WRITABLE_FORMATS))
        raise InputError(
            f"{path}: cannot write {path.suffix or 'a file without a suffix'}; use one of {known}"
        ) from None


def check_size(width: int, height: int, kind: str) -> None:
    """Raise `InputError` if a file of Pillow's format `kind` cannot hold an image of this size, in pixels."""
    maximum = MAX_SIDE_PIXELS.get(kind)
    if maximum and max(width, height) > maximum:
        label = "WebP" if kind == "WEBP" else kind
        raise InputError(
            f"{width}x{height} is more than a {label} file can hold ({maximum:,} pixels per side); write .png"
        )
