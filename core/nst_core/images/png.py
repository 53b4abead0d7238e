"""Remove texts from PNG files that Pillow would refuse."""

from __future__ import annotations

import io
import struct
import zlib
from typing import BinaryIO

from PIL import PngImagePlugin

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_KEPT_TEXTS = {b"XML:com.adobe.xmp", b"Raw profile type exif"}
"""Keywords of the texts that hold an image's metadata."""


def without_texts(stream: BinaryIO) -> BinaryIO:
    """Return a PNG without texts that are unused or too long: Pillow treats more than 1 MB of text as damage.

    Image generators store their whole graph in such a text. XMP and EXIF are kept, each once.
    """
    gaps: list[tuple[int, int]] = []
    kept: set[bytes] = set()
    at, kind = len(SIGNATURE), b""
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
    """Return whether Pillow accepts a text, once decompressed."""
    maximum = PngImagePlugin.MAX_TEXT_CHUNK
    if length > maximum:
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
        expander.decompress(compressed, maximum)
    except zlib.error:
        return False
    return not expander.unconsumed_tail


def _joined(stream: BinaryIO, gaps: list[tuple[int, int]]) -> BinaryIO:
    """Return the file without the gaps, in memory."""
    result = io.BytesIO()
    stream.seek(0)
    for start, end in gaps:
        result.write(stream.read(start - stream.tell()))
        stream.seek(end)
    result.write(stream.read())
    return result
