"""Pictures as arrays: opened safely from whatever people have, and saved whole or not at all.

Inside nst a picture is sRGB, upright, 8 bits a channel, `uint8 [H, W, 3]`, with its opacity
beside it. What a file says about orientation, colour profile, palette, depth and transparency
is settled here, once.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from nst_core.errors import InputError, PictureError
from nst_core.files import written_whole

Pixels = NDArray[np.uint8]

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded unless the caller says otherwise (pixels)."""

READABLE = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
WRITABLE = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


@dataclass(frozen=True, eq=False)
class Picture:
    """sRGB pixels `uint8 [H, W, 3]` and, where the file had transparency, alpha `uint8 [H, W]`."""

    pixels: Pixels
    alpha: Pixels | None = None

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
    Raises `PictureError` for anything that is no whole, readable picture within the limit.
    """
    name = str(source) if isinstance(source, Path) else getattr(source, "name", "the picture")
    if isinstance(source, Path) and not source.is_file():
        what = "is a folder, not a picture" if source.is_dir() else "no such file"
        raise PictureError(f"{name}: {what}")
    try:
        with _pillow_counts_no_pixels(), Image.open(source) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise PictureError(
                    f"{name}: {width}x{height} is {width * height / 1e6:.0f} megapixels, over the "
                    f"limit of {max_pixels / 1e6:.0f}; raise it with --max-pixels"
                )
            if max_side is not None:
                image.draft("RGB", (max_side, max_side))  # JPEG decodes straight to a smaller size
            return _shrunk(_upright_srgb(image), max_side)
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(f"{name}: not a picture in a format that can be read") from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PictureError(f"{name}: damaged or unreadable ({reason})") from error


def save_picture(picture: Picture, path: Path, *, quality: int = 92) -> None:
    """Write JPEG, PNG or WebP by the path's suffix; the file appears whole or not at all.

    JPEG has no transparency: the picture is laid over white. Raises `InputError` for another
    suffix or a folder that cannot be written.
    """
    kind = image_format(path)
    with written_whole(path) as beside:
        try:
            beside.write_bytes(encode_picture(picture, kind, quality=quality))
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def encode_picture(picture: Picture, kind: str, *, quality: int = 92) -> bytes:
    """The picture as the bytes of a `JPEG`, `PNG` or `WEBP` file."""
    image = Image.fromarray(picture.pixels)
    if picture.alpha is not None:
        image.putalpha(Image.fromarray(picture.alpha))
        if kind == "JPEG":
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image).convert("RGB")
    buffer = io.BytesIO()
    subsampling = {"subsampling": 0} if kind == "JPEG" else {}  # strokes are colour edges: keep 4:4:4
    image.save(buffer, kind, quality=quality, **subsampling)
    return buffer.getvalue()


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
    return Picture(scale(picture.pixels), alpha)


def fitted(picture: Picture, width: int, height: int) -> Picture:
    """Scale to cover `width` x `height` and cut out the middle: no distortion, no border."""
    scale = max(width / picture.width, height / picture.height)
    across, down = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    large = resized(picture, across, down)
    left, top = (across - width) // 2, (down - height) // 2
    window = np.s_[top : top + height, left : left + width]
    alpha = None if large.alpha is None else large.alpha[window]
    return Picture(np.ascontiguousarray(large.pixels[window]), alpha)


def with_pixels(picture: Picture, pixels: Pixels) -> Picture:
    """Other pixels under the same opacity."""
    return replace(picture, pixels=pixels)


def find_pictures(folder: Path) -> list[Path]:
    """Every file under `folder` whose suffix is a picture's, sorted; raises `InputError` if none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in READABLE and path.is_file())
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


@contextmanager
def _pillow_counts_no_pixels() -> Iterator[None]:
    """Pillow's own limit is a global that warns first; ours is an argument and refuses."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _upright_srgb(image: Image.Image) -> Picture:
    profile = image.info.get("icc_profile")
    image.load()
    upright = ImageOps.exif_transpose(image)
    if "transparency" in upright.info and upright.mode in ("P", "L", "RGB"):
        upright = upright.convert("RGBA")
    alpha = None
    if upright.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        upright = upright.convert("RGBA")
        alpha = np.array(upright.getchannel("A"))
        if alpha.min() == 255:
            alpha = None
        upright = upright.convert("RGB")
    return Picture(np.array(_to_srgb(_to_8_bits(upright), profile)), alpha)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (modes I;16 and I) and of floating point (F, in [0, 1]) as 8 bits."""
    if image.mode.startswith("I"):
        return Image.fromarray(np.clip(np.asarray(image) / 257.0 + 0.5, 0, 255).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray(np.clip(np.asarray(image) * 255.0 + 0.5, 0, 255).astype(np.uint8))
    return image


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Through the embedded ICC profile if it fits the pixels; without one they are taken as sRGB."""
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # a profile of another colour space or a broken one: the pixels are still a picture
        else:
            if converted is not None:
                return converted
    return image.convert("RGB")


def _shrunk(picture: Picture, max_side: int | None) -> Picture:
    longer = max(picture.width, picture.height)
    if max_side is None or longer <= max_side:
        return picture
    scale = max_side / longer
    return resized(picture, max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))


def sample_photographs() -> list[Path]:
    """The photographs that ship with nst (see `photographs/SOURCES.md`); no network was trained on them."""
    return sorted((Path(__file__).parent / "photographs").glob("*.jpg"))
