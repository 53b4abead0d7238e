"""Pictures as arrays: opened safely from whatever people have, and saved whole or not at all.

Inside nst a picture is sRGB, upright, 8 bits a channel, `uint8 [H, W, 3]`, with its opacity and its
metadata beside it. What a file says about orientation, colour profile, palette, depth and transparency
is settled here, once.
"""

from __future__ import annotations

import io
import os
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from nst_core.decoding import RAW, check_limits, one_error, only_our_limits, opened, reason, refuse_raw
from nst_core.errors import ImageError, InputError
from nst_core.files import atomic_write
from nst_core.metadata import Metadata, metadata_of, process_of, saving

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating]

DEFAULT_MAX_PIXELS = 64_000_000
"""Largest picture that is decoded unless the caller says otherwise (pixels)."""

READABLE_SUFFIXES = frozenset(
    ".apng .avif .bmp .gif .heic .heif .hif .jfif .jpe .jpeg .jpg .mpo .png .tif .tiff .webp".split()  # noqa: SIM905
)
"""Suffixes of the files that are read."""

WRITABLE_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}

UNREADABLE_SUFFIXES = RAW | frozenset(
    ".ai .cur .dds .dib .eps .exr .fits .hdr .icns .ico .j2k .jbig2 .jls .jp2 .jpf .jph "  # noqa: SIM905
    ".jpx .jxl .jxr .kra .ora .pbm .pcx .pfm .pgm .pnm .ppm .psb .psd .qoi .sgi .svg .svgz .tga .wdp .wmf .xbm "
    ".xcf .xpm".split()
)
"""Suffixes of images that are not read."""

LARGEST = {"JPEG": 65_500, "WEBP": 16_383}
"""Pixels that a side of a file of Pillow's format can have at most. JPEG itself ends at 65,535, libjpeg before."""


@dataclass(frozen=True, eq=False)
class ImageData:
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


def open_image(
    source: Path | BinaryIO, *, max_pixels: int = DEFAULT_MAX_PIXELS, max_side: int | None = None
) -> ImageData:
    """Decode one picture: upright, in sRGB, 8 bits a channel.

    `max_pixels` is checked on the header, before anything is decoded. `max_side` shrinks a
    larger picture to that many pixels on its longer side. Of several frames the first is taken.
    An ICC profile of RGB, CMYK or grey is converted from; colours that sRGB lacks are clipped. 16 bits a channel
    become 8, and so does grey of 32 bits, whose white is the first of 1, 255 and 65,535 that its values fit in.
    May be called by several threads at once.
    Raises `ImageError` for anything that is no whole, readable picture within the limit.
    """
    name = str(source) if isinstance(source, Path) else getattr(source, "name", "the picture")
    if isinstance(source, Path) and not os.path.isfile(source):  # noqa: PTH113  a name may be too long for Path.is_file
        what = "is a folder, not a picture" if os.path.isdir(source) else "no such file"  # noqa: PTH112
        raise ImageError(f"{name}: {what}")
    with one_error(name), opened(source) as image:
        check_limits(image, max_pixels)
        if max_side is not None and image.format in ("JPEG", "MPO"):
            image.draft("RGB", (max_side, max_side))  # JPEG decodes straight to a smaller size
        return _shrunk(_upright_srgb(image), max_side)


def from_pillow(image: Image.Image) -> ImageData:
    """What `open_image` makes of the file of this image of Pillow's: upright, in sRGB, 8 bits a channel.

    The image stays as it is. Raises `ImageError` if it cannot be decoded or converted.
    """
    with one_error("the image"), only_our_limits():
        refuse_raw(image)
        own = image.copy()
        own.format = image.format
        with suppress(Exception):  # damaged metadata counts as missing
            if image.format == "TIFF":  # its own tags are its EXIF, and a copy has none of them
                own.info["exif"] = image.getexif().tobytes()
        return _upright_srgb(own)


def save_image(picture: ImageData, path: Path, *, quality: int = 92) -> None:
    """Write JPEG, PNG or WebP by the path's suffix; the file appears whole or not at all.

    See `encode_image`. Raises `InputError` for another suffix, `WriteError` where nothing can be written.
    """
    data = encode_image(picture, image_format(path), quality=quality)
    with atomic_write(path) as beside:
        beside.write_bytes(data)


def encode_image(picture: ImageData, kind: str, *, quality: int = 92) -> bytes:
    """The picture as the bytes of a `JPEG`, `PNG` or `WEBP` file, 8 bits a channel, with its metadata.

    With a profile of RGB the pixels are converted back to it and it is embedded. One of CMYK or grey, or one that
    only leads to sRGB, cannot hold a painting: the file is sRGB then, and says so with a profile of its own.
    JPEG has no transparency: the picture is laid over white.
    Raises `InputError` for a picture that such a file cannot hold; see `check_size`.
    """
    check_size(picture.width, picture.height, kind)
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
    try:
        image.save(buffer, kind, quality=quality, **options)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's encoders raise errors of many kinds
        raise InputError(f"a {kind} of {image.width}x{image.height} cannot be written: {reason(error)}") from error
    return buffer.getvalue()


def check_size(width: int, height: int, kind: str) -> None:
    """Raise `InputError` if a file of Pillow's format `kind` cannot hold so many pixels a side."""
    largest = LARGEST.get(kind)
    if largest and max(width, height) > largest:
        label = "WebP" if kind == "WEBP" else kind
        raise InputError(
            f"{width}x{height} is more than a {label} file can hold ({largest:,} pixels a side): write .png"
        )


def process_of_file(path: Path) -> str:
    """`Metadata.process` of a picture's file, without decoding it; empty if it says none or is no picture."""
    try:
        with opened(path) as image:
            return process_of(image) if "exif" in image.info else ""
    except Exception:  # as in open_image
        return ""


def image_format(path: Path) -> str:
    """Pillow's name of the format that the suffix asks for; `InputError` if it is not written."""
    try:
        return WRITABLE_FORMATS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(sorted(WRITABLE_FORMATS))
        raise InputError(
            f"{path}: cannot write {path.suffix or 'a file without a suffix'}; use one of {known}"
        ) from None


def resize(picture: ImageData, width: int, height: int) -> ImageData:
    """The picture at exactly `width` x `height`, by Lanczos resampling with antialiasing."""
    if (picture.width, picture.height) == (width, height):
        return picture

    def scale(array: Pixels) -> Pixels:
        image = Image.fromarray(array).resize((width, height), Image.Resampling.LANCZOS)
        return np.array(image)

    alpha = None if picture.alpha is None else scale(picture.alpha)
    return replace(picture, pixels=scale(picture.pixels), alpha=alpha)


def fit(picture: ImageData, width: int, height: int) -> ImageData:
    """Scale to cover `width` x `height` and cut out the middle: no distortion, no border."""
    scale = max(width / picture.width, height / picture.height)
    across, down = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    large = resize(picture, across, down)
    left, top = (across - width) // 2, (down - height) // 2
    window = np.s_[top : top + height, left : left + width]
    alpha = None if large.alpha is None else large.alpha[window]
    return replace(large, pixels=np.ascontiguousarray(large.pixels[window]), alpha=alpha)


def with_pixels(picture: ImageData, pixels: Pixels) -> ImageData:
    """Other pixels under the same opacity and metadata."""
    return replace(picture, pixels=pixels)


def blend(photo: Pixels, painted: Pixels, strength: float) -> Pixels:
    """`strength` (0 to 1) of the painting and the rest of the photograph, both `uint8 [H, W, 3]`."""
    return _in_bands(lambda one, other: one + strength * (other - one), photo, painted)


LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Rec. 601: the Y of YIQ."""


def keep_colors(photo: Pixels, painted: Pixels) -> Pixels:
    """The luminance of the painting under the chrominance of the photograph, both `uint8 [H, W, 3]`.

    "Luminance-only transfer" of Gatys et al. 2016, *Preserving Color in Neural Artistic Style Transfer*, on sRGB as
    it is, as in the paper.
    """
    return _in_bands(lambda one, other: one + np.dot(other - one, LUMA)[..., None], photo, painted)


def find_images(folder: Path) -> list[Path]:
    """Every file under `folder` whose suffix is a picture's, sorted; raises `InputError` if none.

    Goes into folders that are symbolic links, too, but into each folder once: where it is itself rather than by a
    link, and never from a folder into one that holds it. A link to a file counts as a file.
    Raises `InputError` for a folder that cannot be listed, too.
    Hidden files are passed over: what another program is just writing, or has for itself.
    """
    found = _with_suffix(folder, READABLE_SUFFIXES)
    if not found:
        unread = unreadable_summary(unreadable_images(folder))
        why = f"; {unread}" if unread else f" (looked for {', '.join(sorted(READABLE_SUFFIXES))})"
        raise InputError(f"{folder}: no pictures in it{why}")
    return found


def unreadable_images(folder: Path) -> list[Path]:
    """The files that `find_images` leaves out although their suffix is an image's: formats that nst does not read."""
    return _with_suffix(folder, UNREADABLE_SUFFIXES)


def unreadable_summary(paths: Iterable[Path]) -> str:
    """A line such as "3 files were not read: 2 .dng, 1 .jxl"; empty for no files."""
    kinds = Counter(path.suffix.lower() for path in paths)
    if not kinds:
        return ""
    count = kinds.total()
    listed = ", ".join(
        f"{number} {suffix}" for suffix, number in sorted(kinds.items(), key=lambda kind: (-kind[1], kind))
    )
    return f"{count} {'file was' if count == 1 else 'files were'} not read: {listed}"


def _with_suffix(folder: Path, suffixes: Collection[str]) -> list[Path]:
    if not os.path.isdir(folder):  # noqa: PTH112
        raise InputError(f"{folder}: no such folder")
    return sorted(
        path
        for path in _files_below(folder)
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def _files_below(folder: Path) -> Iterator[Path]:
    """Every file, those below linked folders last."""
    seen: set[str] = set()
    starts = deque([folder])
    while starts:
        for here, folders, names in os.walk(starts.popleft(), onerror=_not_listed):
            real = os.path.realpath(here)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            yield from (Path(here, name) for name in names)
            for link in (Path(here, name) for name in sorted(folders)):
                if link.is_symlink() and not Path(real).is_relative_to(os.path.realpath(link)):
                    starts.append(link)


def _not_listed(error: OSError) -> None:
    """Pictures are passed over by none but their names."""
    if not isinstance(error, FileNotFoundError):  # a folder that somebody has just removed has no pictures
        raise InputError(f"cannot list the folder {error.filename}: {error.strerror}") from error


def side_by_side(pictures: Iterable[Pixels], *, gap: int = 8) -> Pixels:
    """Pictures of one height in a row, `gap` white columns between them."""
    row: list[Pixels] = []
    for pixels in pictures:
        if row:
            row.append(np.full((pixels.shape[0], gap, 3), 255, np.uint8))
        row.append(pixels)
    return np.concatenate(row, axis=1)


def _upright_srgb(image: Image.Image) -> ImageData:
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    metadata = metadata_of(image)
    colors, alpha = _apart(image)
    return ImageData(np.array(_to_srgb(_to_8_bits(colors), metadata.profile)), alpha, metadata)


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
    """Grey of 16 or 32 bits and of floating point as 8 bits; a palette as its colours."""
    if image.mode.startswith("I;16"):
        return _scaled(np.asarray(image), 65_535)
    if image.mode in ("I", "F"):
        levels = np.asarray(image)
        return _scaled(levels, _white(levels))
    return image.convert({"1": "L", "P": "RGB"}[image.mode]) if image.mode in ("1", "P") else image


def _white(levels: NDArray[np.generic]) -> int:
    """The value of white that grey of 32 bits is meant to have, which no file says: 1, 255 or 65,535.

    It is the first of them that the highest value does not exceed. Floating point may exceed it by up to a factor of
    two, as resampling makes edges overshoot.
    """
    finite = levels[np.isfinite(levels)]
    highest = float(finite.max()) if finite.size else 0.0
    slack = 2 if levels.dtype.kind == "f" else 1
    for white in (1, 255, 65_535):
        if highest <= white * slack:
            return white
    raise ImageError(f"its values go up to {highest:.6g}, so white is unknown: save it with 8 or 16 bits a channel")


def _scaled(levels: NDArray[Any], white: int) -> Image.Image:
    """Levels from 0 to `white` as grey of 8 bits, a band of rows at a time; what is beyond is clipped, NaN is black."""
    result = np.empty(levels.shape, np.uint8)
    for top in range(0, len(result), 256):
        band = np.nan_to_num(levels[top : top + 256].astype(np.float64)).clip(0, white)
        result[top : top + 256] = band * (255 / white) + 0.5
    return Image.fromarray(result)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Through the embedded ICC profile if it fits the pixels; without one they are taken as sRGB."""
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            return _converted(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"))
        except (ImageCms.PyCMSError, OSError):
            pass  # a profile of another colour space or a broken one: the pixels are still a picture
    if image.mode == "LAB":
        return _converted(image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
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


def _shrunk(picture: ImageData, max_side: int | None) -> ImageData:
    longer = max(picture.width, picture.height)
    if max_side is None or longer <= max_side:
        return picture
    scale = max_side / longer
    return resize(picture, max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))


def sample_photographs() -> list[Path]:
    """The photographs that ship with nst (see `photographs/SOURCES.md`); no network was trained on them."""
    return sorted((Path(__file__).parent / "photographs").glob("*.jpg"))
