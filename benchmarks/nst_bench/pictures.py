"""`make pictures`: the grid of the README, photographs above and what a shipped style makes of them below.

Usage: python -m nst_bench.pictures [PHOTO...]; without photographs, those that ship with nst.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from torch import from_numpy, inference_mode

from nst_bench.demo import CHECKPOINT
from nst_core.console import one_line_errors, say
from nst_core.images import Picture, fitted, open_picture, sample_photographs, save_picture, side_by_side
from nst_export.served import ServedModel
from nst_trainer.checkpoint import load

SIDE = 300
"""Pixels of a picture's side in the grid; they are painted at twice that."""


def main() -> None:
    """Paint at 600 pixels, shrink, and set them out in rows of four."""
    with one_line_errors("export"):
        photos = [Path(argument) for argument in sys.argv[1:]] or sample_photographs()
        model = ServedModel(load(CHECKPOINT).network)
        rows = []
        for first in range(0, len(photos), 4):
            large = [fitted(open_picture(photo), 2 * SIDE, 2 * SIDE) for photo in photos[first : first + 4]]
            painted = [_painted(model, picture) for picture in large]
            for pictures in (large, painted):
                rows.append(side_by_side([fitted(picture, SIDE, SIDE).pixels for picture in pictures], gap=6))
                rows.append(np.full((6, rows[-1].shape[1], 3), 255, np.uint8))
        target = Path("docs/pictures") / f"{CHECKPOINT.stem}.jpg"
        save_picture(Picture(np.concatenate(rows[:-1])), target, quality=88)
        say(f"wrote {target}: {', '.join(photo.name for photo in photos)}")


@inference_mode()
def _painted(model: ServedModel, picture: Picture) -> Picture:
    return Picture(model(from_numpy(picture.pixels[None]))[0].numpy())


if __name__ == "__main__":
    main()
