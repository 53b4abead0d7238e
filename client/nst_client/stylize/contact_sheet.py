"""Contact sheets: an image in every style that a server offers, each above its name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nst_client.client import StyleClient
from nst_client.styles import Style
from nst_core.images import ImageData, Pixels, fit, open_image, resize, sample_photographs

WIDTH, HEIGHT = 320, 240
"""Size of a thumbnail in pixels. It is stylized at twice that, since strokes have the same size in every image."""

COLUMNS = 4
"""Thumbnails per row."""

GAP, CAPTION_HEIGHT, FONT_SIZE = 12, 26, 18
"""Pixels between thumbnails, height of a caption, and size of its font."""


def default_photograph() -> ImageData:
    """Return the default content image: a cat, whose fur and eyes show a style well."""
    (cat,) = [path for path in sample_photographs() if path.stem == "chelsea"]
    return open_image(cat)


def thumbnails(client: StyleClient, styles: Iterable[Style], content: ImageData) -> Iterable[tuple[str, Pixels]]:
    """Yield the content image and its stylized images, each as a name and `uint8 [HEIGHT, WIDTH, 3]`.

    Raises what `StyleClient.stylize` raises.
    """
    large = fit(content, 2 * WIDTH, 2 * HEIGHT)
    yield "content", resize(large, WIDTH, HEIGHT).pixels
    for style in styles:
        # A model may accept less than that in one pass.
        scale = style.fitting_scale(large.height, large.width)
        scaled = resize(large, int(large.width * scale), int(large.height * scale))
        stylized = client.stylize(scaled.pixels, style.name)
        yield style.name, resize(ImageData(stylized), WIDTH, HEIGHT).pixels


def contact_sheet(named: Sequence[tuple[str, Pixels]], columns: int = COLUMNS) -> ImageData:
    """Arrange images of one size `uint8 [H, W, 3]` in rows on white, each above its name."""
    height, width = named[0][1].shape[:2]
    across, down = width + GAP, height + CAPTION_HEIGHT + GAP
    columns = min(columns, len(named))
    rows = ceil(len(named) / columns)
    image = Image.new("RGB", (columns * across + GAP, rows * down + GAP), "white")
    draw = ImageDraw.Draw(image)
    for number, (name, pixels) in enumerate(named):
        left, top = GAP + number % columns * across, GAP + number // columns * down
        image.paste(Image.fromarray(pixels), (left, top))
        middle = left + width / 2, top + height + CAPTION_HEIGHT / 2
        draw.text(middle, name, fill="black", font=_font(name, width), anchor="mm")
    return ImageData(np.array(image))


def _font(name: str, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's default font, smaller for a name that is wider than its image."""
    font = ImageFont.load_default(FONT_SIZE)
    length = font.getlength(name)
    return font if length <= width else ImageFont.load_default(FONT_SIZE * width / length)
