"""Read the directories of a TIFF file without Pillow, and choose its page."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

from PIL import Image

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

SUBFILE_TYPE, SUB_IFDS, DNG_VERSION = 254, 330, 50_706
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLES_PER_PIXEL, SAMPLE_FORMAT = 258, 262, 277, 339
TILE_WIDTH, TILE_LENGTH = 322, 323


def is_reduced(image: Image.Image) -> bool:
    """Return whether a TIFF's current page is marked as a smaller version of another page."""
    kind = image.tag_v2.get(SUBFILE_TYPE, 0)  # type: ignore[attr-defined]
    return isinstance(kind, int) and kind & 1 == 1


def to_largest(image: Image.Image) -> None:
    """Seek to the first page that is not a smaller version of another page."""
    with suppress(EOFError):
        for page in range(1, _MAX_DIRECTORIES):
            if not is_reduced(image):
                return
            image.seek(page)
    image.seek(0)


def explain_unreadable(stream: BinaryIO) -> str:
    """Explain why Pillow cannot read a TIFF's pixels."""
    tags = next(directories(stream), {})
    samples, bits = first_value(tags, SAMPLES_PER_PIXEL, 1), first_value(tags, BITS_PER_SAMPLE, 1)
    kind = ", floating point" if first_value(tags, SAMPLE_FORMAT) == 3 else ""
    return (
        f"a damaged or unsupported TIFF (channels: {samples}, bits per channel: {bits}{kind}); "
        "save it as RGB with 8 or 16 bits per channel"
    )


def first_value(tags: dict[int, tuple[int, ...]], tag: int, default: int = 0) -> int:
    """Return a tag's first number, or `default`."""
    return next(iter(tags.get(tag, ())), default)


_MAX_DIRECTORIES, _MAX_TAGS, _MAX_VALUES = 64, 4096, 32
_WANTED = {SUBFILE_TYPE, BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLES_PER_PIXEL, SUB_IFDS, SAMPLE_FORMAT, DNG_VERSION}
_LETTERS = {1: "B", 3: "H", 4: "L", 13: "L", 16: "Q", 18: "Q"}
"""Format letters of TIFF's integer types, for `struct`."""


def directories(stream: BinaryIO) -> Iterator[dict[int, tuple[int, ...]]]:
    """Yield the tags in `_WANTED` of each directory and sub-directory; stop where the file is damaged."""
    stream.seek(0)
    head = stream.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = 43 in head[2:4]
    layouts = ("Q", "HHQ8s", "Q") if big else ("H", "HHL4s", "L")
    counter, entry, pointer = [struct.Struct(order + layout) for layout in layouts]
    waiting, seen = deque([pointer.unpack_from(head, 8 if big else 4)[0]]), {0}
    with suppress(struct.error, OverflowError, ValueError):
        while waiting and len(seen) <= _MAX_DIRECTORIES:
            at = waiting.popleft()
            if at in seen:
                continue
            seen.add(at)
            stream.seek(at)
            (count,) = counter.unpack(stream.read(counter.size))
            if count > _MAX_TAGS:
                continue
            table = stream.read(count * entry.size)
            following = stream.read(pointer.size)
            tags = {
                tag: _values(stream, order, kind, number, data)
                for tag, kind, number, data in entry.iter_unpack(table)
                if tag in _WANTED
            }
            yield tags
            waiting.extend(tags.get(SUB_IFDS, ()))
            waiting.extend(pointer.unpack(following))


def _values(stream: BinaryIO, order: str, kind: int, count: int, data: bytes) -> tuple[int, ...]:
    """Return up to `_MAX_VALUES` numbers of a tag, from the entry itself or from where it points."""
    letter = _LETTERS.get(kind)
    if letter is None:
        return ()
    size = struct.calcsize(f"{order}{letter}")
    kept = min(count, _MAX_VALUES)
    if count * size > len(data):
        stream.seek(struct.unpack(order + ("Q" if len(data) == 8 else "L"), data)[0])
        data = stream.read(kept * size)
    return struct.unpack(f"{order}{kept}{letter}", data[: kept * size])
