"""`make pictures`: the pictures of the README, from the shipped models and the photographs that ship with nst.

The gallery's styles on two photographs, the styles that have a network of their own, a mix of two styles in steps, a
large picture, and a moving one; with photographs given also those above what Starry Night makes of them. Painted as
everybody's are: exported, and called by `StyleClient` or the way of `nst video`.

Usage: python -m nst_bench.pictures [PHOTO...]
"""

from __future__ import annotations

import io
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from nst_bench.commands import CHECKPOINT, GALLERY
from nst_client import AsyncStyleClient, StyleClient
from nst_client.stylize.contact_sheet import contact_sheet
from nst_client.video.footage import Encoder, Footage, Format, Frame
from nst_client.video.schedule import Schedule
from nst_client.video.stylize import Plan, paint_video
from nst_core.console import one_line_errors, progress, say
from nst_core.files import atomic_write
from nst_core.images import (
    ImageData,
    Pixels,
    encode_image,
    fitted,
    open_image,
    resized,
    sample_photographs,
    save_image,
    side_by_side,
)
from nst_export.export_plan import ExportPlan
from nst_export.pipeline import export_checkpoint

FOLDER = Path("docs/pictures")

SIDE = 300
"""Pixels of a picture's side in the grid of Starry Night; they are painted at twice that."""

GALLERY_PHOTOGRAPHS, GALLERY_SIDE, GALLERY_COLUMNS = ("chelsea", "astronaut"), 200, 5
"""Whose grid is painted at twice its side, too."""

OWN = (
    *("starry-night", "udnie-johnson", "composition-vii-fast"),
    *("contrast-of-forms-fast", "great-wave-fast", "water-lilies-fast"),
)
OWN_PHOTOGRAPHS, OWN_SIDES, OWN_COLUMNS = ("astronaut", "rocket"), (300, 225), 3
"""Painted at twice their sides."""

MIXED, MIXED_PHOTOGRAPH, MIXED_SIDES, STEPS = ("the-scream", "great-wave"), "coffee", (300, 225), 5
"""Painted at twice its sides."""

LARGE_STYLE, LARGE_PHOTOGRAPH, LARGE_WIDTH, LARGE_BYTES = "udnie", "rocket", 1800, 600_000

FILM_STYLES, FILM_PHOTOGRAPH, FILM_SIDES = (
    "0:the-starry-night, 1.5s:great-wave, 4s:the-starry-night",
    "rocket",
    (480, 320),
)
FILM_RATE, FILM_SECONDS, FILM_SHOWN, FILM_BYTES = 12, 6, (360, 240), 1_500_000
"""The camera goes over the photograph and comes back, so that the end meets the beginning."""


def main() -> None:
    """Export, paint, and write each picture."""
    with one_line_errors("all"), tempfile.TemporaryDirectory() as scratch:
        repository = Path(scratch) / "model_repository"
        given = [Path(argument) for argument in sys.argv[1:]]
        own = [GALLERY.with_name(f"{name}.pth") for name in OWN]
        for checkpoint in (GALLERY, *own, CHECKPOINT) if given else (GALLERY, *own):
            export_checkpoint(
                checkpoint, checkpoint.stem, repository, ExportPlan(cores=os.cpu_count() or 1), on_progress=say
            )
        url = f"local:{repository}"
        with StyleClient(url) as client:
            if given:
                _starry_night(client, given)
            _gallery(client)
            _own(client)
            _mix(client)
            _large(client)
        _film(url, Path(scratch))


def _starry_night(client: StyleClient, photos: list[Path]) -> None:
    """Rows of four photographs, and of four paintings below."""
    rows = []
    for first in range(0, len(photos), 4):
        large = [fitted(open_image(photo), 2 * SIDE, 2 * SIDE).pixels for photo in photos[first : first + 4]]
        painted = [client.stylize(pixels, CHECKPOINT.stem) for pixels in large]
        rows += [side_by_side([_halved(one) for one in row], gap=6) for row in (large, painted)]
    rows = [np.pad(row, ((0, 6), (0, rows[0].shape[1] - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    _save(ImageData(np.concatenate(rows)[:-6]), CHECKPOINT.stem)


def _gallery(client: StyleClient) -> None:
    """A photograph in every style, then another."""
    sheets = []
    for name in GALLERY_PHOTOGRAPHS:
        large = fitted(_photograph(name), 2 * GALLERY_SIDE, 2 * GALLERY_SIDE).pixels
        named = [
            (style.name, _halved(client.stylize(large, style.name)))
            for style in client.styles()
            if style.model == GALLERY.stem
        ]
        sheets.append(contact_sheet(named, GALLERY_COLUMNS).pixels)
    _save(ImageData(np.concatenate(sheets)), GALLERY.stem)


def _own(client: StyleClient) -> None:
    """The styles that have a network of their own, on a photograph, then on another."""
    width, height = OWN_SIDES
    large = [fitted(_photograph(name), 2 * width, 2 * height).pixels for name in OWN_PHOTOGRAPHS]
    named = [(style, _halved(client.stylize(pixels, style))) for pixels in large for style in OWN]
    _save(contact_sheet(named, OWN_COLUMNS), "own")


def _mix(client: StyleClient) -> None:
    """From one style to another, each step with its shares."""
    width, height = MIXED_SIDES
    large = fitted(_photograph(MIXED_PHOTOGRAPH), 2 * width, 2 * height).pixels
    first, last = MIXED
    named = []
    for step in range(STEPS):
        share = step / (STEPS - 1)
        mix = {first: 1 - share, last: share}
        name = " + ".join(f"{style} {weight:.0%}" if weight < 1 else style for style, weight in mix.items() if weight)
        named.append((name, _halved(client.stylize(large, mix))))
    _save(contact_sheet(named, STEPS), "mix")


def _large(client: StyleClient) -> None:
    """One picture in one pass, as large as a screen."""
    photo = _photograph(LARGE_PHOTOGRAPH)
    large = resized(photo, LARGE_WIDTH, round(photo.height * LARGE_WIDTH / photo.width))
    painted = ImageData(client.stylize(large.pixels, LARGE_STYLE))
    _write("large.jpg", LARGE_BYTES, lambda quality: encode_image(painted, "JPEG", quality=quality))


def _film(url: str, scratch: Path) -> None:
    """A film of a camera that moves, beside the film that is made of it."""
    given, painted = scratch / "given.mp4", scratch / "painted.mp4"
    form = Format(*FILM_SIDES, Fraction(1, FILM_RATE), Fraction(FILM_RATE))
    with Encoder(given, form, "h264", crf=10, container="mp4") as encoder:
        for number, pixels in enumerate(_moving(_photograph(FILM_PHOTOGRAPH))):
            encoder.add(Frame(pixels, number))
    plan = Plan(Schedule.of(FILM_STYLES), smooth=True, crf=10)
    with progress("frames", FILM_RATE * FILM_SECONDS) as update:
        result = paint_video(
            given, painted, plan, partial(AsyncStyleClient, url), on_frame=lambda done, total: update(done, "")
        )
    assert result.warping_error
    say("warping error {:.2f} before smoothing, {:.2f} after".format(*result.warping_error))
    both = zip(Footage(given).frames(), Footage(painted).frames(), strict=True)
    shown = [
        Image.fromarray(side_by_side([resized(ImageData(frame.pixels), *FILM_SHOWN).pixels for frame in pair], gap=6))
        for pair in both
    ]
    _write("video.webp", FILM_BYTES, partial(_animated, shown))


def _moving(photo: ImageData) -> Iterator[Pixels]:
    """What a camera sees that comes nearer, goes aside, and returns."""
    image = Image.fromarray(photo.pixels)
    width, height = FILM_SIDES
    full = min(photo.width / width, photo.height / height)
    for number in range(FILM_RATE * FILM_SECONDS):
        turn = 2 * math.pi * number / (FILM_RATE * FILM_SECONDS)
        scale = full * (0.8 + 0.18 * math.cos(turn))
        seen = scale * width, scale * height
        free = photo.width - seen[0], photo.height - seen[1]
        left, top = free[0] * (0.5 + 0.45 * math.sin(turn)), free[1] * (0.5 - 0.45 * math.sin(turn))
        box = (left, top, left + seen[0], top + seen[1])
        yield np.array(image.resize(FILM_SIDES, Image.Resampling.LANCZOS, box))


def _animated(frames: list[Image.Image], quality: int) -> bytes:
    """An endless WebP of frames."""
    buffer = io.BytesIO()
    frames[0].save(
        *(buffer, "WEBP"),
        save_all=True,
        append_images=frames[1:],
        duration=[1000 // FILM_RATE] * len(frames),
        loop=0,
        quality=quality,
        method=4,
    )
    return buffer.getvalue()


def _photograph(name: str) -> ImageData:
    (path,) = [path for path in sample_photographs() if path.stem == name]
    return open_image(path)


def _halved(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    return resized(ImageData(pixels), width // 2, height // 2).pixels


def _write(name: str, most: int, encode: Callable[[int], bytes]) -> None:
    """In the best quality with which the file has `most` bytes."""
    for quality in range(90, 0, -10):
        if len(data := encode(quality)) <= most:
            break
    with atomic_write(FOLDER / name) as beside:
        beside.write_bytes(data)
    say(f"wrote {FOLDER / name}: {len(data) / 1000:.0f} kB, quality {quality}")


def _save(picture: ImageData, name: str) -> None:
    save_image(picture, FOLDER / f"{name}.jpg", quality=88)
    say(f"wrote {FOLDER / name}.jpg: {picture.width}x{picture.height}")


if __name__ == "__main__":
    main()
