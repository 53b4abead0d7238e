"""Split an image into tiles that join without a seam.

Every tile includes `overlap` pixels around the part that is kept of it, which covers the network's receptive
field, and all tiles share the statistics of a small copy of the whole image (Chen et al. 2022,
*Towards Ultra-Resolution Neural Style Transfer via Thumbnail Instance Normalization*).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, isqrt

import numpy as np

from nst_core.images import ImageData, Pixels, resize

MAX_KEPT_SIDE_PIXELS = 640
"""Maximum side, in pixels, of the part of a tile that is kept."""

THUMBNAIL_PIXELS = 512
"""Longer side of the small copy, in pixels.

With both sizes a server of Johnson's network at width 1 stays below 1.5 GB on a CPU: its idle model takes 0.3 GB,
a pass for the statistics of 512x512 0.6 GB, and a pass for a tile of 752x752 0.5 GB.
"""

MIN_THUMBNAIL_PIXELS = 16
"""Minimum side of the small copy, in pixels, so that its variance has a meaning."""


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in pixels: it covers [`start`, `stop`) of the image and keeps [`first`, `last`)."""

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class Tile:
    """A tile of `height` x `width` pixels for the network, padded by reflection beyond the image's borders."""

    row: Span
    column: Span
    height: int
    width: int

    def cut(self, pixels: Pixels) -> Pixels:
        """Cut the tile out of an image `uint8 [H, W, 3]`; returns `[1, height, width, 3]`."""
        row, column = self.row, self.column
        covered = pixels[row.start : row.stop, column.start : column.stop]
        below, right = self.height - covered.shape[0], self.width - covered.shape[1]
        return np.ascontiguousarray(np.pad(covered, ((0, below), (0, right), (0, 0)), "reflect")[None])

    def place(self, stylized: Pixels, whole: Pixels) -> None:
        """Copy the part to keep of a stylized tile `[1, height, width, 3]` into `whole` `[H, W, 3]`."""
        row, column = self.row, self.column
        whole[row.first : row.last, column.first : column.last] = stylized[
            0, row.first - row.start : row.last - row.start, column.first - column.start : column.last - column.start
        ]


@dataclass(frozen=True)
class Grid:
    """How an image is split: tiles begin at multiples of `multiple`, with `overlap` pixels around the kept part.

    A tile keeps at most `side` pixels per side. `overlap` and `side` are multiples of `multiple`. All tiles along an
    axis have the same length, so a server sees a single tile size per image.
    """

    multiple: int
    overlap: int
    side: int

    @classmethod
    def fitting(cls, multiple: int, overlap: int, max_pixels: int, max_side: int | None = None) -> Grid | None:
        """Return the grid whose tiles have at most `max_pixels` pixels and sides of at most `max_side` (None: any).

        Returns None if no tile is that small.
        """
        overlap = ceil(overlap / multiple) * multiple
        largest = isqrt(max_pixels)
        side = min(MAX_KEPT_SIDE_PIXELS, min(largest, max_side or largest) - 2 * overlap) // multiple * multiple
        return cls(multiple, overlap, side) if side > 0 else None

    def spans(self, length: int) -> list[Span]:
        """Return the tiles along an axis of `length` pixels."""
        covered = self.side + 2 * self.overlap
        if length <= covered:
            return [Span(0, length, 0, length)]
        latest = self._rounded_up(length - covered)
        found, first = list[Span](), 0
        while first < length:
            start = min(max(0, first - self.overlap), latest)
            stop = min(start + covered, length)
            last = length if stop == length else stop - self.overlap
            found.append(Span(start, stop, first, last))
            first = last
        return found

    def tiles(self, height: int, width: int) -> Iterator[Tile]:
        """Yield all tiles of an image, row by row."""
        rows, columns = self.spans(height), self.spans(width)
        tile_height, tile_width = self._longest(rows), self._longest(columns)
        for row in rows:
            for column in columns:
                yield Tile(row, column, tile_height, tile_width)

    def count(self, height: int, width: int) -> int:
        """Return the number of tiles of an image."""
        return len(self.spans(height)) * len(self.spans(width))

    def _longest(self, spans: list[Span]) -> int:
        return self._rounded_up(max(span.stop - span.start for span in spans))

    def _rounded_up(self, length: int) -> int:
        return ceil(length / self.multiple) * self.multiple


def thumbnail(pixels: Pixels, min_side: int) -> Pixels:
    """Return the small copy of an image `uint8 [H, W, 3]` whose statistics the tiles share.

    Its sides are at least `min_side` pixels.
    """
    min_side = max(MIN_THUMBNAIL_PIXELS, min_side)
    height, width = pixels.shape[:2]
    scale = min(1.0, max(THUMBNAIL_PIXELS / max(height, width), min_side / min(height, width)))
    return resize(ImageData(pixels), max(min_side, round(width * scale)), max(min_side, round(height * scale))).pixels
