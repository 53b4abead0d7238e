"""From a file to an image of Pillow's that can be decoded safely.

Pillow reads most formats, libheif HEIC. Before they see a file, what would paint the wrong pixels is refused
(cameras' raw files, of which Pillow would read the thumbnail) and what would stop them without a reason is left out
(PNG's long texts).
"""

from __future__ import annotations

import ctypes
import io
import logging
import re
import struct
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from PIL import Image, PngImagePlugin, UnidentifiedImageError, _imaging

from nst_core.errors import ImageError

MAX_SCANS = 100
"""Most scans of a JPEG that are decoded. Each costs a pass over the whole picture and as little as a dozen bytes."""

PILLOWS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Pillow's names of what it reads for us. It knows more, and one of them starts Ghostscript."""

FORMATS = tuple(sorted((*PILLOWS, "HEIF")))
"""What is read, whatever the file is called."""

RAW = frozenset(
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .gpr .iiq .k25 .kdc .mef .mos .mrw .nef "  # noqa: SIM905
    ".nrw .orf .pef .raf .raw .rw2 .rwl .sr2 .srf .srw .x3f".split()
)
"""Suffixes of cameras' raw files."""


@contextmanager
def opened(source: Path | BinaryIO) -> Iterator[Image.Image]:
    """The image of a file that is of one of `FORMATS`: its headers are read, its pixels are not decoded yet.

    Raises `ImageError` for a camera's raw file, `UnidentifiedImageError` for another format, and whatever Pillow
    raises for a damaged file: see `one_error`.
    """
    with ExitStack() as stack:
        stack.enter_context(only_our_limits())
        stream = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
        suffix = source.suffix.lower() if isinstance(source, Path) else ""
        stream.seek(0)
        head = stream.read(64)
        _refuse_raw(stream, head, suffix)
        if head.startswith(_PNG):
            stream = _without_texts(stream)
        stream.seek(0)
        try:
            image = _heif(stream) if _is_heif(head) else Image.open(stream, formats=PILLOWS)
        except UnidentifiedImageError:
            if suffix in RAW:
                raise _raw(suffix) from None
            if head.startswith(_TIFF):
                raise ImageError(_unknown_tiff(stream)) from None
            if _brands(head) & _AVIF:
                raise ImageError("a damaged AVIF file") from None
            raise
        stack.enter_context(image)
        if image.format == "TIFF":
            _to_largest(image)
        yield image


@contextmanager
def one_error(name: str) -> Iterator[None]:
    """Whatever an image makes Pillow raise, as one `ImageError` of one line that begins with the `name`."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a picture in a format that can be read ({', '.join(FORMATS)})") from None
    except MemoryError as error:
        raise ImageError(f"{name}: there is not enough memory to decode it") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them into
        raise ImageError(f"{name}: damaged or unreadable ({reason(error)})") from error


def reason(error: Exception) -> str:
    """The first line of an error's message, or its name where it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


# What Pillow and libtiff have to say of a damaged file, our one line says: they would write to stderr beside it.
logging.getLogger("PIL").addHandler(logging.NullHandler())
with suppress(AttributeError, OSError):  # a Pillow with its libtiff inside has no such name outside
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)

_entering = threading.Lock()
_inside = 0
_before: tuple[int | None, warnings.catch_warnings[None]]


@contextmanager
def only_our_limits() -> Iterator[None]:
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


def check_limits(image: Image.Image, max_pixels: int) -> None:
    """Raise `ImageError` for what a small file could make us decode; looks at the headers alone.

    An AVIF's stream may hold more than its header says: libavif ends that at 16384x16384 pixels.
    """
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{width}x{height} is {width * height / 1e6:.0f} megapixels, over the "
            f"limit of {max_pixels / 1e6:.0f}; raise it with --max-pixels"
        )
    if image.format == "TIFF":
        across, down = (int(image.tag_v2.get(tag, 0)) for tag in (322, 323))  # type: ignore[attr-defined]
        if across * down > max(max_pixels, 1_000_000):
            raise ImageError(
                f"its tiles of {across}x{down} pixels are over the limit of {max_pixels / 1e6:.0f} megapixels"
            )
    if image.format in ("JPEG", "MPO") and (scans := _scans(image)) > MAX_SCANS:
        raise ImageError(f"{scans} scans are over the limit of {MAX_SCANS}")


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


_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF = {b"avif", b"avis"}
_EITHER = {b"mif1", b"msf1"}


def _brands(head: bytes) -> set[bytes]:
    """The brands, the major one and the compatible ones, of a file in the format that HEIC and AVIF share."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}


def _is_heif(head: bytes) -> bool:
    """Whether a file that begins like this is libheif's to read; AVIF is Pillow's."""
    brands = _brands(head)
    return bool(brands) and (head[8:12] in _HEIF or (head[8:12] in _EITHER and not brands & _AVIF))


def _heif(stream: BinaryIO) -> Image.Image:
    """Not through `Image.open`: that would have to be taught HEIF for the whole process."""
    from pillow_heif import HeifImageFile

    image: Image.Image = HeifImageFile(stream)  # type: ignore[no-untyped-call]
    return image


_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_RAW_HEADS = {
    b"FUJIFILMCCD-RAW": ".raf",
    b"IIRO": ".orf",
    b"IIRS": ".orf",
    b"MMOR": ".orf",
    b"IIU\0": ".rw2",
    b"\0MRM": ".mrw",
    b"FOVb": ".x3f",
}
_SUBFILE_TYPE, _BITS, _PHOTOMETRIC, _SAMPLES, _SUB_IFDS, _SAMPLE_FORMAT, _DNG_VERSION = (
    *(254, 258, 262, 277, 330, 339),
    50_706,
)
_SENSOR = (32_803, 34_892)
"""Photometric interpretations: a colour filter array, and linear raw data."""


def _raw(suffix: str) -> ImageError:
    kind = f" ({suffix[1:].upper()})" if suffix in RAW else ""
    return ImageError(f"a camera's raw file{kind}: nst does not develop it; export it as JPEG or TIFF")


def _refuse_raw(stream: BinaryIO, head: bytes, suffix: str) -> None:
    """Raise `ImageError` for a raw file. Most are TIFFs whose first image is a thumbnail, which Pillow would read."""
    for magic, kind in _RAW_HEADS.items():
        if head.startswith(magic):
            raise _raw(kind)
    if head[4:12] == b"ftypcrx ":
        raise _raw(".cr3")
    if head[6:14] == b"HEAPCCDR":
        raise _raw(".crw")
    if not head.startswith(_TIFF):
        return
    if head[8:10] == b"CR":
        raise _raw(".cr2")
    for number, tags in enumerate(_directories(stream)):
        if _DNG_VERSION in tags:
            raise _raw(".dng")
        thumbnail = number == 0 and _first(tags, _SUBFILE_TYPE) & 1 and _SUB_IFDS in tags
        if thumbnail or _first(tags, _PHOTOMETRIC) in _SENSOR:
            raise _raw(suffix)


def refuse_raw(image: Image.Image) -> None:
    """Raise `ImageError` for a raw file that Pillow opened by itself: the image is its thumbnail."""
    tags = getattr(image, "tag_v2", {})
    if _DNG_VERSION in tags or (_SUB_IFDS in tags and _is_reduced(image)):
        raise _raw(".dng" if _DNG_VERSION in tags else "")


def _is_reduced(image: Image.Image) -> bool:
    said = image.tag_v2.get(_SUBFILE_TYPE, 0)  # type: ignore[attr-defined]
    return isinstance(said, int) and said & 1 == 1


def _to_largest(image: Image.Image) -> None:
    """Turn to the first page of a TIFF that is not said to be a smaller version of another one."""
    with suppress(EOFError):
        for page in range(1, _MOST_DIRECTORIES):
            if not _is_reduced(image):
                return
            image.seek(page)
    image.seek(0)


def _unknown_tiff(stream: BinaryIO) -> str:
    """Why Pillow reads no pixels of a TIFF."""
    tags = next(_directories(stream), {})
    samples, bits = _first(tags, _SAMPLES, 1), _first(tags, _BITS, 1)
    kind = ", floating point" if _first(tags, _SAMPLE_FORMAT) == 3 else ""
    return (
        f"a damaged TIFF, or one of a kind that is not read (channels: {samples}, bits a channel: {bits}{kind}): "
        "save it as RGB of 8 or 16 bits"
    )


def _first(tags: dict[int, tuple[int, ...]], tag: int, default: int = 0) -> int:
    return next(iter(tags.get(tag, ())), default)


_MOST_DIRECTORIES, _MOST_TAGS, _MOST_VALUES = 64, 4096, 32
_WANTED = {_SUBFILE_TYPE, _BITS, _PHOTOMETRIC, _SAMPLES, _SUB_IFDS, _SAMPLE_FORMAT, _DNG_VERSION}
_LETTERS = {1: "B", 3: "H", 4: "L", 13: "L", 16: "Q", 18: "Q"}
"""`struct`'s letters of TIFF's types of whole numbers."""


def _directories(stream: BinaryIO) -> Iterator[dict[int, tuple[int, ...]]]:
    """The wanted tags of each directory of a TIFF, those of sub-directories as well; ends where the file is damaged."""
    stream.seek(0)
    head = stream.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = 43 in head[2:4]
    counter, entry, pointer = [
        struct.Struct(order + kind) for kind in (("Q", "HHQ8s", "Q") if big else ("H", "HHL4s", "L"))
    ]
    waiting, seen = deque([pointer.unpack_from(head, 8 if big else 4)[0]]), {0}
    with suppress(struct.error, OverflowError, ValueError):
        while waiting and len(seen) <= _MOST_DIRECTORIES:
            at = waiting.popleft()
            if at in seen:
                continue
            seen.add(at)
            stream.seek(at)
            (count,) = counter.unpack(stream.read(counter.size))
            if count > _MOST_TAGS:
                continue
            table = stream.read(count * entry.size)
            following = stream.read(pointer.size)
            tags = {
                tag: _values(stream, order, kind, number, data)
                for tag, kind, number, data in entry.iter_unpack(table)
                if tag in _WANTED
            }
            yield tags
            waiting.extend(tags.get(_SUB_IFDS, ()))
            waiting.extend(pointer.unpack(following))


def _values(stream: BinaryIO, order: str, kind: int, count: int, data: bytes) -> tuple[int, ...]:
    """The numbers of a tag, up to `_MOST_VALUES`: in the entry itself where they fit in, else where it points to."""
    letter = _LETTERS.get(kind)
    if letter is None:
        return ()
    size = struct.calcsize(f"{order}{letter}")
    kept = min(count, _MOST_VALUES)
    if count * size > len(data):
        stream.seek(struct.unpack(order + ("Q" if len(data) == 8 else "L"), data)[0])
        data = stream.read(kept * size)
    return struct.unpack(f"{order}{kept}{letter}", data[: kept * size])


_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_KEPT_TEXTS = {b"XML:com.adobe.xmp", b"Raw profile type exif"}
"""Keywords of the texts that a picture's metadata are made of."""


def _without_texts(stream: BinaryIO) -> BinaryIO:
    """A PNG without the texts that are not read or too long: Pillow takes a file with 1 MB of them as damaged.

    Image generators write their whole graph into one. XMP and EXIF stay, one of each.
    """
    gaps: list[tuple[int, int]] = []
    kept: set[bytes] = set()
    at, kind = len(_PNG), b""
    while kind != b"IEND":
        stream.seek(at)
        header = stream.read(8)
        if len(header) < 8:
            break
        length, kind = struct.unpack(">I4s", header)
        end = at + length + 12
        if kind in _TEXTS:
            keyword = stream.read(80).partition(b"\0")[0]
            stream.seek(at + 8)
            if keyword in kept or keyword not in _KEPT_TEXTS or not _is_short(kind, length, stream):
                gaps.append((at, end))
            kept.add(keyword)
        at = end
    return _joined(stream, gaps) if gaps else stream


def _is_short(kind: bytes, length: int, stream: BinaryIO) -> bool:
    """Whether a text, expanded, is one that Pillow takes."""
    most = PngImagePlugin.MAX_TEXT_CHUNK
    if length > most:
        return False
    _, _, text = stream.read(length).partition(b"\0")
    if kind == b"zTXt":
        compressed = text[1:]
    elif kind == b"iTXt" and text[:1] == b"\1":
        compressed = text[2:].split(b"\0", 2)[-1]
    else:
        return True
    expander = zlib.decompressobj()
    try:
        expander.decompress(compressed, most)
    except zlib.error:
        return False
    return not expander.unconsumed_tail


def _joined(stream: BinaryIO, gaps: list[tuple[int, int]]) -> BinaryIO:
    """The file without its gaps, in memory."""
    result = io.BytesIO()
    stream.seek(0)
    for start, end in gaps:
        result.write(stream.read(start - stream.tell()))
        stream.seek(end)
    result.write(stream.read())
    return result
