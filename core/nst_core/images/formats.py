"""Which image formats nst reads and writes, by suffix and by Pillow's name, and what a file of each can hold."""

from __future__ import annotations

from pathlib import Path

from nst_core.errors import InputError

DEFAULT_MAX_PIXELS = 64_000_000
"""Largest image that is decoded unless the caller says otherwise."""

READABLE_SUFFIXES = frozenset(
    ".apng .avif .bmp .gif .heic .heif .hif .jfif .jpe .jpeg .jpg .mpo .png .tif .tiff .webp".split()  # noqa: SIM905
)

WRITABLE_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
"""Pillow's name of the format that is written for a suffix."""

RAW_SUFFIXES = frozenset(
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .gpr .iiq .k25 .kdc .mef .mos .mrw .nef "  # noqa: SIM905
    ".nrw .orf .pef .raf .raw .rw2 .rwl .sr2 .srf .srw .x3f".split()
)
"""Suffixes of cameras' raw files."""

UNREADABLE_SUFFIXES = RAW_SUFFIXES | frozenset(
    ".ai .cur .dds .dib .eps .exr .fits .hdr .icns .ico .j2k .jbig2 .jls .jp2 .jpf .jph "  # noqa: SIM905
    ".jpx .jxl .jxr .kra .ora .pbm .pcx .pfm .pgm .pnm .ppm .psb .psd .qoi .sgi .svg .svgz .tga .wdp .wmf .xbm "
    ".xcf .xpm".split()
)
"""Suffixes of images that nst does not read."""

MAX_SIDE_PIXELS = {"JPEG": 65_500, "WEBP": 16_383}
"""Longest side of a file, by Pillow's name of its format. JPEG itself ends at 65,535, libjpeg before that."""


def image_format(path: Path) -> str:
    """Pillow's name of the format that the suffix asks for. Raises `InputError` for a format that is not written."""
    try:
        return WRITABLE_FORMATS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(sorted(WRITABLE_FORMATS))
        raise InputError(
            f"{path}: cannot write {path.suffix or 'a file without a suffix'}; use one of {known}"
        ) from None


def check_size(width: int, height: int, kind: str) -> None:
    """Raise `InputError` if a file of Pillow's format `kind` cannot hold an image of this size."""
    maximum = MAX_SIDE_PIXELS.get(kind)
    if maximum and max(width, height) > maximum:
        label = "WebP" if kind == "WEBP" else kind
        raise InputError(
            f"{width}x{height} is more than a {label} file can hold ({maximum:,} pixels a side): write .png"
        )
