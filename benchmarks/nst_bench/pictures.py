"""`make pictures`: the grids of the README, from the shipped models.

Photographs above and what Starry Night makes of them below; and two that ship in every style of the gallery.

Usage: python -m nst_bench.pictures [PHOTO...]; without photographs, those that ship with nst.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from torch import from_numpy, inference_mode, zeros

from nst_bench.demo import CHECKPOINT
from nst_core.console import one_line_errors, say
from nst_core.images import Picture, Pixels, fitted, open_picture, sample_photographs, save_picture, side_by_side
from nst_export.served import ServedModel
from nst_trainer.checkpoint import load

SIDE = 300
"""Pixels of a picture's side in the grid; they are painted at twice that."""

GALLERY = Path("models/gallery.pth")
GALLERY_PHOTOGRAPHS, GALLERY_SIDE, GALLERY_COLUMNS = ("chelsea.jpg", "astronaut.jpg"), 200, 5
"""Whose grid is painted at twice its side, too."""


def main() -> None:
    """Paint at twice the size, shrink, and set them out in rows."""
    with one_line_errors("export"):
        _starry_night([Path(argument) for argument in sys.argv[1:]] or sample_photographs())
        _gallery()


def _starry_night(photos: list[Path]) -> None:
    """Rows of four photographs, and of four paintings below."""
    model = ServedModel(load(CHECKPOINT).network)
    rows = []
    for first in range(0, len(photos), 4):
        large = [fitted(open_picture(photo), 2 * SIDE, 2 * SIDE) for photo in photos[first : first + 4]]
        painted = [_painted(model, picture) for picture in large]
        rows += [_row(large, SIDE), _row(painted, SIDE)]
    _write(rows, CHECKPOINT.stem)


def _gallery() -> None:
    """A photograph in every style, in the order of the checkpoint, then another."""
    checkpoint = load(GALLERY)
    model = ServedModel(checkpoint.network)
    rows = []
    for photo in (path for name in GALLERY_PHOTOGRAPHS for path in sample_photographs() if path.name == name):
        large = fitted(open_picture(photo), 2 * GALLERY_SIDE, 2 * GALLERY_SIDE)
        painted = [_painted(model, large, style) for style in range(len(checkpoint.styles))]
        for first in range(0, len(painted), GALLERY_COLUMNS):
            rows.append(_row(painted[first : first + GALLERY_COLUMNS], GALLERY_SIDE))
    _write(rows, GALLERY.stem)
    say(f"its styles: {', '.join(checkpoint.styles)}")


@inference_mode()
def _painted(model: ServedModel, picture: Picture, style: int | None = None) -> Picture:
    inputs = [from_numpy(picture.pixels[None])]
    if style is not None:
        mix = zeros(1, model.network.styles)
        mix[0, style] = 1.0
        inputs.append(mix)
    return Picture(model(*inputs)[0].numpy())


def _row(pictures: list[Picture], side: int) -> Pixels:
    row = side_by_side([fitted(picture, side, side).pixels for picture in pictures], gap=6)
    return np.concatenate([row, np.full((6, row.shape[1], 3), 255, np.uint8)])


def _write(rows: list[Pixels], name: str) -> None:
    target = Path("docs/pictures") / f"{name}.jpg"
    save_picture(Picture(np.concatenate(rows)[:-6]), target, quality=88)
    say(f"wrote {target}")


if __name__ == "__main__":
    main()
