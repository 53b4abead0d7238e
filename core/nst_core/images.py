"""Pictures as arrays: opened safely from whatever people have, and saved whole or not at all.

Inside nst a picture is sRGB, upright, 8 bits a channel, `uint8 [H, W, 3]`, with its opacity and its
metadata beside it. What a file says about orientation, colour profile, palette, depth and transparency
is settled here, once.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError, _imaging

from nst_core.errors import InputError, PictureError, WriteError
from nst_core.files import written_whole
from nst_core.metadata import Metadata, metadata_of, process_of, saving

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating]

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded unless the caller says otherwise (pixels)."""

MAX_SCANS = 100
"""Most scans of a JPEG that are decoded. Each costs a pass over the whole picture and as little as a dozen bytes."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Pillow's names of what is read, whatever the file is called. It knows more, and one of them starts Ghostscript."""

READABLE = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
WRITABLE = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


@dataclass(frozen=True, eq=False)
class Picture:
    """sRGB pixels `uint8 [H, W, 3]` and, where the file had transparency, alpha `uint8 [H, W]`.

    `metadata` is what the file said beside them, and what a file that is written of them will say.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    metadata: Metadata = Metadata()

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.pixels.shape[1])


def open_picture(source: Path | BinaryIO, *, max_pixels: int = MAX_PIXELS, max_side: int | None = None) -> Picture:
    """Decode one picture: upright, in sRGB, 8 bits a channel.

    `max_pixels` is checked on the header, before anything is decoded. `max_side` shrinks a
    larger picture to that many pixels on its longer side. Of several frames the first is taken.
    An ICC profile of RGB, CMYK or grey is converted from; colours that sRGB lacks are clipped. 16 bits a channel
    become 8. May be called by several threads at once.
    Raises `PictureError` for anything that is no whole, readable picture within the limit.
    """
    name = str(source) if isinstance(source, Path) else getattr(source, "name", "the picture")
    if isinstance(source, Path) and not source.is_file():
        what = "is a folder, not a picture" if source.is_dir() else "no such file"
        raise PictureError(f"{name}: {what}")
    try:
        with _only_our_limits(), Image.open(source, formats=FORMATS) as image:
            _check_limits(image, max_pixels)
            if max_side is not None:
                image.draft("RGB", (max_side, max_side))  # JPEG decodes straight to a smaller size
            return _shrunk(_upright_srgb(image), max_side)
    except PictureError as error:
        raise PictureError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise PictureError(f"{name}: not a picture in a format that can be read ({', '.join(FORMATS)})") from None
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them into
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PictureError(f"{name}: damaged or unreadable ({reason})") from error


def save_picture(picture: Picture, path: Path, *, quality: int = 92) -> None:
    """Write JPEG, PNG or WebP by the path's suffix; the file appears whole or not at all.

    See `encode_picture`. Raises `InputError` for another suffix, `WriteError` where nothing can be written.
    """
    data = encode_picture(picture, image_format(path), quality=quality)
    try:
        with written_whole(path) as beside, beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # some file systems say only now that they are full
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error


def encode_picture(picture: Picture, kind: str, *, quality: int = 92) -> bytes:
    """The picture as the bytes of a `JPEG`, `PNG` or `WEBP` file, 8 bits a channel, with its metadata.

    With a profile of RGB the pixels are converted back to it and it is embedded. One of CMYK or grey, or one that
    only leads to sRGB, cannot hold a painting: the file is sRGB then, and says so with a profile of its own.
    JPEG has no transparency: the picture is laid over white.
    """
    image, profile = _from_srgb(Image.fromarray(picture.pixels), picture.metadata.profile)
    if picture.alpha is not None:
        image.putalpha(Image.fromarray(picture.alpha))
        if kind == "JPEG":
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image).convert("RGB")
    options = saving(picture.metadata, kind, picture.width, picture.height)
    if profile:
        options["icc_profile"] = profile
    if kind == "JPEG":
        options["subsampling"] = 0  # strokes are colour edges: keep 4:4:4
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality, **options)
    return buffer.getvalue()


def process_of_file(path: Path) -> str:
    """`Metadata.process` of a picture's file, without decoding it; empty if it says none or is no picture."""
    try:
        with _only_our_limits(), Image.open(path, formats=FORMATS) as image:
            return process_of(image) if "exif" in image.info else ""
    except Exception:  # as in open_picture
        return ""


def image_format(path: Path) -> str:
    """Pillow's name of the format that the suffix asks for; `InputError` if it is not written."""
    try:
        return WRITABLE[path.suffix.lower()]
    except KeyError:
        known = ", ".join(sorted(WRITABLE))
        raise InputError(
            f"{path}: cannot write {path.suffix or 'a file without a suffix'}; use one of {known}"
        ) from None


def resized(picture: Picture, width: int, height: int) -> Picture:
    """The picture at exactly `width` x `height`, by Lanczos resampling with antialiasing."""
    if (picture.width, picture.height) == (width, height):
        return picture

    def scale(array: Pixels) -> Pixels:
        image = Image.fromarray(array).resize((width, height), Image.Resampling.LANCZOS)
        return np.array(image)

    alpha = None if picture.alpha is None else scale(picture.alpha)
    return replace(picture, pixels=scale(picture.pixels), alpha=alpha)


def fitted(picture: Picture, width: int, height: int) -> Picture:
    """Scale to cover `width` x `height` and cut out the middle: no distortion, no border."""
    scale = max(width / picture.width, height / picture.height)
    across, down = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    large = resized(picture, across, down)
    left, top = (across - width) // 2, (down - height) // 2
    window = np.s_[top : top + height, left : left + width]
    alpha = None if large.alpha is None else large.alpha[window]
    return replace(large, pixels=np.ascontiguousarray(large.pixels[window]), alpha=alpha)


def with_pixels(picture: Picture, pixels: Pixels) -> Picture:
    """Other pixels under the same opacity and metadata."""
    return replace(picture, pixels=pixels)


def blended(photo: Pixels, painted: Pixels, strength: float) -> Pixels:
    """`strength` (0 to 1) of the painting and the rest of the photograph, both `uint8 [H, W, 3]`."""
    return _in_bands(lambda one, other: one + strength * (other - one), photo, painted)


LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Rec. 601: the Y of YIQ."""


def with_colors_of(photo: Pixels, painted: Pixels) -> Pixels:
    """The luminance of the painting under the chrominance of the photograph, both `uint8 [H, W, 3]`.

    "Luminance-only transfer" of Gatys et al. 2016, *Preserving Color in Neural Artistic Style Transfer*, on sRGB as
    it is, as in the paper.
    """
    return _in_bands(lambda one, other: one + np.dot(other - one, LUMA)[..., None], photo, painted)


def find_pictures(folder: Path) -> list[Path]:
    """Every file under `folder` whose suffix is a picture's, sorted; raises `InputError` if none.

    Hidden files are passed over: what another program is just writing, or has for itself.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in READABLE and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise InputError(f"{folder}: no pictures in it (looked for {', '.join(sorted(READABLE))})")
    return found


def side_by_side(pictures: Iterable[Pixels], *, gap: int = 8) -> Pixels:
    """Pictures of one height in a row, `gap` white columns between them."""
    row: list[Pixels] = []
    for pixels in pictures:
        if row:
            row.append(np.full((pixels.shape[0], gap, 3), 255, np.uint8))
        row.append(pixels)
    return np.concatenate(row, axis=1)


# What Pillow and libtiff have to say of a damaged file, our one line says: they would write to stderr beside it.
logging.getLogger("PIL").addHandler(logging.NullHandler())
with suppress(AttributeError, OSError):  # a Pillow with its libtiff inside has no such name outside
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)

_entering = threading.Lock()
_inside = 0
_before: tuple[int | None, warnings.catch_warnings[None]]


@contextmanager
def _only_our_limits() -> Iterator[None]:
    """Pillow's limit of pixels is a global that warns first; ours is an argument and refuses. Its warnings are silent.

    Both are settings of the process: the first thread that comes in changes them and the last one that leaves
    restores them.
    """
    global _inside, _before
    with _entering:
        _inside += 1
        if _inside == 1:
            _before = Image.MAX_IMAGE_PIXELS, warnings.catch_warnings()
            _before[1].__enter__()
            warnings.filterwarnings("ignore", module="PIL")
            Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _entering:
            _inside -= 1
            if _inside == 0:
                Image.MAX_IMAGE_PIXELS = _before[0]
                _before[1].__exit__(None, None, None)


def _check_limits(image: Image.Image, max_pixels: int) -> None:
    """Refuse what a small file could make us decode."""
    width, height = image.size
    if width * height > max_pixels:
        raise PictureError(
            f"{width}x{height} is {width * height / 1e6:.0f} megapixels, over the "
            f"limit of {max_pixels / 1e6:.0f}; raise it with --max-pixels"
        )
    if image.format == "TIFF":
        across, down = (int(image.tag_v2.get(tag, 0)) for tag in (322, 323))  # type: ignore[attr-defined]
        if across * down > max(max_pixels, 1_000_000):
            raise PictureError(
                f"its tiles of {across}x{down} pixels are over the limit of {max_pixels / 1e6:.0f} megapixels"
            )
    if image.format in ("JPEG", "MPO") and (scans := _scans(image)) > MAX_SCANS:
        raise PictureError(f"{scans} scans are over the limit of {MAX_SCANS}")


_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA


def _scans(image: Image.Image) -> int:
    """How many scans the first JPEG of an opened file has."""
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


def _upright_srgb(image: Image.Image) -> Picture:
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    metadata = metadata_of(image)
    colors, alpha = _apart(image)
    return Picture(np.array(_to_srgb(_to_8_bits(colors), metadata.profile)), alpha, metadata)


def _apart(image: Image.Image) -> tuple[Image.Image, Pixels | None]:
    """The colours, and the opacity where there is any."""
    if "transparency" in image.info and image.mode in ("1", "L", "P", "RGB"):
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    if image.mode in ("PA", "RGBa", "La"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode not in ("RGBA", "LA"):
        return image, None
    alpha = np.array(image.getchannel("A"))
    return image.convert(image.mode[:-1]), None if alpha.min() == 255 else alpha


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (modes I;16 and I) and of floating point (F, in [0, 1]) as 8 bits; a palette as its colours."""
    if image.mode.startswith("I"):
        levels = np.clip(np.asarray(image), 0, 65_535 - 128)  # the highest that can be rounded in 16 bits
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        levels = np.clip(np.nan_to_num(np.asarray(image)), 0, 1)
        return Image.fromarray((levels * 255 + 0.5).astype(np.uint8))
    return image.convert({"1": "L", "P": "RGB"}[image.mode]) if image.mode in ("1", "P") else image


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Through the embedded ICC profile if it fits the pixels; without one they are taken as sRGB."""
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            return _converted(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"))
        except (ImageCms.PyCMSError, OSError):
            pass  # a profile of another colour space or a broken one: the pixels are still a picture
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, bytes]:
    """The picture in the colours of `profile`, and the profile that it is in then."""
    if not profile:
        return image, b""
    try:
        target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return _converted(image, ImageCms.createProfile("sRGB"), target), profile
    except (ImageCms.PyCMSError, OSError):
        return image, _srgb_profile()


def _converted(image: Image.Image, source: object, target: object) -> Image.Image:
    converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")  # type: ignore[arg-type]
    assert converted is not None  # only a conversion in place gives None
    return converted


@cache
def _srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _in_bands(mixed: Callable[[Floats, Floats], Floats], photo: Pixels, painted: Pixels) -> Pixels:
    """A formula on levels as floating point, a band of rows at a time: whole pictures of them would fill the memory."""
    result = np.empty_like(painted)
    for top in range(0, len(result), 256):
        rows = slice(top, top + 256)
        band = mixed(photo[rows].astype(np.float32), painted[rows].astype(np.float32))
        result[rows] = np.clip(band + 0.5, 0, 255).astype(np.uint8)
    return result


def _shrunk(picture: Picture, max_side: int | None) -> Picture:
    longer = max(picture.width, picture.height)
    if max_side is None or longer <= max_side:
        return picture
    scale = max_side / longer
    return resized(picture, max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))


def sample_photographs() -> list[Path]:
    """The photographs that ship with nst (see `photographs/SOURCES.md`); no network was trained on them."""
    return sorted((Path(__file__).parent / "photographs").glob("*.jpg"))
