"""The shapes and inputs on which engines are compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from nst_core.contract import IMAGE, STYLE_WEIGHTS, Purpose
from nst_core.engines.plans import Shape
from nst_core.images import Pixels, fit, open_image, sample_photographs
from nst_export.modules import Exportable, TensorSpec, round_up
from nst_export.verification.agreement import Feeds

SHAPES = ((1, 256, 256), (1, 333, 501), (1, 480, 270), (3, 128, 100), (2, 181, 255))
"""(batch, height, width): square, odd, portrait, batches of three and two."""

SMALL_SHAPES = ((1, 1, 1), (1, 3, 3), (1, 1, 7), (1, 4, 4), (1, 3, 64), (1, 15, 15), (1, 16, 16))
"""Thumbnails, icons and tracking pixels, smaller than the network accepts: the graph pads them."""

SHAPE_AFTER_SMALL = (1, 64, 80)
"""Follows each small image: an engine that a small image breaks may fail at the next image."""

MANY_STYLES_SIZE = (128, 96)
"""(height, width) of additional batches, so that there is an image for every style."""


def shapes_for(model: Exportable) -> list[Shape]:
    """Return the shapes at which engines are compared with `model`: `SHAPES`, then small images with larger in between.

    The small images are `SMALL_SHAPES`, and those around the network's minimum side. A batch is added if some style or
    an interpolation would have no image otherwise. Sides of textures are multiples of the grid, without the size that
    is a single position on the coarsest grid, which PyTorch does not normalize.
    """
    side, multiple = model.network.min_side, model.network.multiple
    shapes = [*SHAPES]
    missing = model.network.styles + 2 - sum(n for n, _, _ in shapes)
    if missing > 0:
        shapes.append((missing, *MANY_STYLES_SIZE))
    around_minimum = ((1, side - 1, side - 1), (1, side, side), (1, side + 1, side + 3))
    for shape in dict.fromkeys((*SMALL_SHAPES, *around_minimum)):
        shapes += [shape, SHAPE_AFTER_SMALL]
    if model.purpose != Purpose.TEXTURE:
        return shapes
    on_grid = [round_up_to_grid(shape, multiple) for shape in shapes]
    return [shape for shape in on_grid if shape[1:] != (multiple, multiple)]


def round_up_to_grid(shape: Shape, multiple: int) -> Shape:
    """Round the sides of `shape` up to multiples of `multiple`."""
    n, height, width = shape
    return n, round_up(height, multiple), round_up(width, multiple)


def example_feeds(inputs: Sequence[TensorSpec], shapes: Sequence[Shape]) -> list[Feeds]:
    """Return inputs for every shape: photographs or noise; with several styles each alone, then interpolations."""
    random = np.random.default_rng(0)
    photographs = photograph_batches(shapes)
    styles = next((int(spec.axes[1]) for spec in inputs if spec.name == STYLE_WEIGHTS), 1)
    images = sum(n for n, _, _ in shapes)
    interpolations = random.random((max(images, styles) - styles, styles))
    weights = iter(np.concatenate([np.eye(styles), interpolations]))
    feeds: list[Feeds] = []
    for (n, height, width), batch in zip(shapes, photographs, strict=True):
        feed: Feeds = {}
        for spec in inputs:
            if spec.name == IMAGE:
                feed[spec.name] = batch
            elif spec.name == STYLE_WEIGHTS:
                feed[spec.name] = np.stack([next(weights) for _ in range(n)]).astype(np.float32)
            else:
                factor = int(spec.name.removeprefix("noise_"))
                noise_shape = (n, height // factor, width // factor, int(spec.axes[-1]))
                feed[spec.name] = (random.random(noise_shape) - 0.5).astype(np.float32)
        feeds.append(feed)
    return feeds


def photograph_batches(shapes: Iterable[Shape]) -> list[Pixels]:
    """Return photographs cropped to each shape, `uint8 [N, H, W, 3]`; the images of a batch differ."""
    photographs = [open_image(path) for path in sample_photographs()]
    batches = []
    for position, (n, height, width) in enumerate(shapes):
        chosen = [photographs[(position + index) % len(photographs)] for index in range(n)]
        batches.append(np.stack([fit(photograph, width, height).pixels for photograph in chosen]))
    return batches
