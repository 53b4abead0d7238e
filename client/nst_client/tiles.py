"""A picture in tiles that join without a seam.

Every tile sees `overlap` pixels around the part that is kept of it, as far as a pixel of the network
reaches, and all share the statistics of a small copy of the whole picture (Chen et al. 2022,
*Towards Ultra-Resolution Neural Style Transfer via Thumbnail Instance Normalization*).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt

import numpy as np

from nst_core.images import ImageData, Pixels, resize

SIDE = 640
"""Largest side of the part that is kept of a tile, pixels."""

THUMBNAIL, FEWEST = 512, 16
"""Longer side of the small copy, pixels.

With both a server of Johnson's network at width 1 stays below 1.5 GB on a CPU: its idle model, a pass for the
statistics of 512x512 and one for a tile of 752x752, which hold 0.3, 0.6 and 0.5 GB.
"""


@dataclass(frozen=True)
class Span:
    """Along one axis, pixels: a tile sees [`start`, `stop`), and [`first`, `last`) of the picture is kept of it."""

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class Tile:
    """One tile; `height` and `width` are what the network sees, with the picture's reflection beyond its borders."""

    row: Span
    column: Span
    height: int
    width: int

    def cut(self, pixels: Pixels) -> Pixels:
        """What the tile sees of `uint8 [H, W, 3]`, as `[1, height, width, 3]`."""
        row, column = self.row, self.column
        seen = pixels[row.start : row.stop, column.start : column.stop]
        below, right = self.height - seen.shape[0], self.width - seen.shape[1]
        return np.ascontiguousarray(np.pad(seen, ((0, below), (0, right), (0, 0)), "reflect")[None])

    def place(self, painted: Pixels, whole: Pixels) -> None:
        """Copy what is kept of the painted tile `[1, height, width, 3]` into `whole` `[H, W, 3]`."""
        row, column = self.row, self.column
        whole[row.first : row.last, column.first : column.last] = painted[
            0, row.first - row.start : row.last - row.start, column.first - column.start : column.last - column.start
        ]


@dataclass(frozen=True)
class Grid:
    """How pictures are cut for a network: tiles begin at multiples of `multiple`, its grid.

    They see `overlap` pixels around the at most `side` pixels that are kept of them; all three are multiples of
    `multiple`. All tiles along an axis see equally much, so that a server meets one size a picture.
    """

    multiple: int
    overlap: int
    side: int

    @classmethod
    def fitting(cls, multiple: int, overlap: int, max_pixels: int, max_side: int | None = None) -> Grid | None:
        """The grid whose tiles have `max_pixels` pixels and `max_side` a side at most; None if not even the smallest.

        `max_side` None is any.
        """
        overlap = -(-overlap // multiple) * multiple
        largest = isqrt(max_pixels)
        side = min(SIDE, min(largest, max_side or largest) - 2 * overlap) // multiple * multiple
        return cls(multiple, overlap, side) if side > 0 else None

    def spans(self, length: int) -> list[Span]:
        """Tiles along an axis of `length` pixels."""
        seen = self.side + 2 * self.overlap
        if length <= seen:
            return [Span(0, length, 0, length)]
        latest = self._up(length - seen)
        found, first = list[Span](), 0
        while first < length:
            start = min(max(0, first - self.overlap), latest)
            stop = min(start + seen, length)
            last = length if stop == length else stop - self.overlap
            found.append(Span(start, stop, first, last))
            first = last
        return found

    def tiles(self, height: int, width: int) -> Iterator[Tile]:
        """All tiles of a picture, row by row."""
        rows, columns = self.spans(height), self.spans(width)
        down, across = (self._up(max(one.stop - one.start for one in spans)) for spans in (rows, columns))
        for row in rows:
            for column in columns:
                yield Tile(row, column, down, across)

    def count(self, height: int, width: int) -> int:
        """How many tiles a picture takes."""
        return len(self.spans(height)) * len(self.spans(width))

    def _up(self, length: int) -> int:
        return -(-length // self.multiple) * self.multiple


def thumbnail(pixels: Pixels, min_side: int) -> Pixels:
    """The small copy of `uint8 [H, W, 3]` whose statistics the tiles share, `min_side` and more pixels a side.

    And at least `FEWEST`, of which a variance can be said.
    """
    min_side = max(FEWEST, min_side)
    height, width = pixels.shape[:2]
    scale = min(1.0, max(THUMBNAIL / max(height, width), min_side / min(height, width)))
    return resize(ImageData(pixels), max(min_side, round(width * scale)), max(min_side, round(height * scale))).pixels
