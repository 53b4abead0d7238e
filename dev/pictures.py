"""`make pictures`: make the images of the README and of docs/styles with the shipped models and photographs.

For the README and the guides: the gallery's styles on two photographs, an interpolation of two styles, a large image
and a video. For docs/styles: an image and a thumbnail per checkpoint. The models are exported, and images are stylized
by `StyleClient` or as by `nst video`. Small images are stylized at twice their size.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from nst_apps.video.codec.decoder import VideoSource
from nst_apps.video.codec.encoder import Encoder
from nst_apps.video.codec.formats import Frame, VideoFormat
from nst_apps.video.schedule import Schedule
from nst_apps.video.settings import VideoSettings
from nst_apps.video.stylize import stylize_video
from nst_client import AsyncStyleClient, StyleClient
from nst_client.stylize.contact_sheet import contact_sheet
from nst_core.console import one_line_errors, progress, say
from nst_core.files import atomic_write
from nst_core.images import (
    ImageData,
    Pixels,
    encode_image,
    fit,
    open_image,
    resize,
    sample_photographs,
    save_image,
    side_by_side,
)
from nst_export.export_plan import ExportPlan
from nst_export.pipeline import export_and_publish
from nst_trainer.sampling import sample_texture

FOLDER = Path("docs/pictures")
MODELS = Path("models")
GALLERY = "gallery"
CARDS = {
    "starry-night-fast": "rocket",
    "starry-night-steady": "rocket",
    "starry-night": "rocket",
    "udnie-johnson": "chelsea",
    "composition-vii-fast": "coffee",
    "contrast-of-forms-fast": "chelsea",
    "great-wave-fast": "coffee",
    "water-lilies-fast": "coffee",
}
"""The content image on the card of each checkpoint of one style."""
FEW_STYLES = ("contrast-of-forms", "great-wave", "the-scream", "udnie")
"""Styles on the gallery's thumbnail."""
TEXTURES = ("strawberries", "gravel")
CARD_SIDES, THUMBNAIL_SIDES, CARD_MAX_BYTES = (446, 298), (240, 160), 80_000
"""Width and height in pixels of half a card's image and of a thumbnail; an image's largest file."""
LARGE_WIDTH_PIXELS = 1800
FRAME_RATE, VIDEO_SECONDS, VIDEO_SIDES, SHOWN_SIDES = 12, 6, (480, 320), (360, 240)


def main() -> None:
    """Export the models, and write all images."""
    with one_line_errors("all"), tempfile.TemporaryDirectory() as scratch:
        repository = Path(scratch) / "model_repository"
        export((GALLERY, *CARDS), repository)
        url = f"local:{repository}"
        with StyleClient(url) as client:
            gallery(client)
            interpolation(client)
            large(client)
            cards(client)
        textures(Path(scratch))
        video(url, Path(scratch))


def export(names: Iterable[str], repository: Path) -> None:
    """Publish shipped checkpoints by their names."""
    for name in names:
        plan = ExportPlan(cores=os.cpu_count() or 1)
        export_and_publish(MODELS / f"{name}.pth", name, repository, plan, on_progress=say)


def gallery(client: StyleClient, side: int = 200, columns: int = 5) -> None:
    """Write two photographs in every style of the gallery."""
    styles = [style.name for style in client.styles() if style.model == GALLERY]
    sheets = []
    for photograph in (sample("chelsea"), sample("astronaut")):
        named = [(style, pair(client, photograph, style, side, side)[1]) for style in styles]
        sheets.append(contact_sheet(named, columns).pixels)
    save(ImageData(np.concatenate(sheets)), GALLERY)


def interpolation(client: StyleClient, width: int = 300, height: int = 225, steps: int = 5) -> None:
    """Write an interpolation between two styles, each step labelled with its style weights."""
    photograph = sample("coffee")
    named = []
    for step in range(steps):
        weight = step / (steps - 1)
        style_weights = {"the-scream": 1 - weight, "great-wave": weight}
        parts = [f"{style} {part:.0%}" if part < 1 else style for style, part in style_weights.items() if part]
        named.append((" + ".join(parts), pair(client, photograph, style_weights, width, height)[1]))
    save(contact_sheet(named, steps), "interpolation")


def large(client: StyleClient) -> None:
    """Write a large image, stylized in one pass."""
    photograph = sample("rocket")
    height = round(photograph.height * LARGE_WIDTH_PIXELS / photograph.width)
    pixels = resize(photograph, LARGE_WIDTH_PIXELS, height).pixels
    stylized = ImageData(client.stylize(pixels, "udnie"))
    write_below("large.jpg", 600_000, lambda quality: encode_image(stylized, "JPEG", quality=quality))


def cards(client: StyleClient) -> None:
    """Write each checkpoint's card: a content image beside its stylized image; for the gallery a sheet."""
    for style, name in CARDS.items():
        # At twice the sides the photographs, which are 450 to 640 pixels wide, would have to be enlarged.
        card(style, side_by_side(pair(client, sample(name), style, *CARD_SIDES, scale=1.5), gap=8))
        thumbnail(style, pair(client, sample("chelsea"), style, *THUMBNAIL_SIDES)[1])
    styles = [style.name for style in client.styles() if style.model == GALLERY]
    pairs = [pair(client, sample("chelsea"), style, 198, 132) for style in styles]
    named = [("content image", pairs[0][0]), *zip(styles, [stylized for _, stylized in pairs], strict=True)]
    card(GALLERY, contact_sheet(named, 4).pixels)
    width, height = (side // 2 for side in THUMBNAIL_SIDES)
    few = [resize(ImageData(image), width, height).pixels for name, image in named if name in FEW_STYLES]
    rows = [side_by_side(few[:2], gap=0), side_by_side(few[2:], gap=0)]
    thumbnail(GALLERY, np.concatenate(rows))


def textures(scratch: Path) -> None:
    """Write a sample of each texture network, and a part of it at full size."""
    width, height = 2 * CARD_SIDES[0] + 8, CARD_SIDES[1]
    for name in TEXTURES:
        sample_texture(MODELS / f"{name}.pth", scratch / f"{name}.png", (height, width), seed=7)
        pixels = open_image(scratch / f"{name}.png").pixels
        card(name, pixels)
        thumbnail(name, pixels[: THUMBNAIL_SIDES[1], : THUMBNAIL_SIDES[0]])


def card(name: str, pixels: Pixels) -> None:
    """Write the image of a page of docs/styles."""
    write_below(
        f"styles/{name}.jpg", CARD_MAX_BYTES, lambda quality: encode_image(ImageData(pixels), "JPEG", quality=quality)
    )


def thumbnail(name: str, pixels: Pixels) -> None:
    """Write the image of a row of docs/styles/index.md."""
    save_image(ImageData(pixels), FOLDER / "styles" / "thumbnails" / f"{name}.jpg", quality=80)


def video(url: str, scratch: Path) -> None:
    """Write a video of a moving camera, beside its stylized video."""
    source, target = scratch / "source.mp4", scratch / "stylized.mp4"
    form = VideoFormat(*VIDEO_SIDES, Fraction(1, FRAME_RATE), Fraction(FRAME_RATE))
    with Encoder(source, form, "h264", crf=10, container="mp4") as encoder:
        for number, pixels in enumerate(camera_movement(sample("rocket"))):
            encoder.add(Frame(pixels, number))
    plan = VideoSettings(Schedule.of("0:the-starry-night, 1.5s:great-wave, 4s:the-starry-night"), smooth=True, crf=10)
    with progress("frames", FRAME_RATE * VIDEO_SECONDS) as update:
        result = stylize_video(
            source, target, plan, partial(AsyncStyleClient, url), on_progress=lambda done, total: update(done, "")
        )
    assert result.warping_error
    say("warping error {:.2f} before smoothing, {:.2f} after".format(*result.warping_error))
    pairs = zip(VideoSource(source).frames(), VideoSource(target).frames(), strict=True)
    frames = [
        Image.fromarray(side_by_side([resize(ImageData(frame.pixels), *SHOWN_SIDES).pixels for frame in both], gap=6))
        for both in pairs
    ]
    write_below("video.webp", 1_500_000, partial(endless_webp, frames))


def camera_movement(photograph: ImageData) -> Iterator[Pixels]:
    """Yield frames of a camera that zooms, pans, and returns, so that the video loops."""
    image = Image.fromarray(photograph.pixels)
    width, height = VIDEO_SIDES
    largest = min(photograph.width / width, photograph.height / height)
    frames = FRAME_RATE * VIDEO_SECONDS
    for number in range(frames):
        turn = 2 * math.pi * number / frames
        scale = largest * (0.8 + 0.18 * math.cos(turn))
        seen_width, seen_height = scale * width, scale * height
        left = (photograph.width - seen_width) * (0.5 + 0.45 * math.sin(turn))
        top = (photograph.height - seen_height) * (0.5 - 0.45 * math.sin(turn))
        box = (left, top, left + seen_width, top + seen_height)
        yield np.array(image.resize(VIDEO_SIDES, Image.Resampling.LANCZOS, box))


def endless_webp(frames: list[Image.Image], quality: int) -> bytes:
    """Encode an animation that repeats."""
    buffer = io.BytesIO()
    durations = [1000 // FRAME_RATE] * len(frames)
    options = {"duration": durations, "loop": 0, "quality": quality, "method": 4}
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], **options)
    return buffer.getvalue()


def sample(name: str) -> ImageData:
    """Return a photograph that ships with nst."""
    (path,) = [path for path in sample_photographs() if path.stem == name]
    return open_image(path)


def pair(
    client: StyleClient,
    photograph: ImageData,
    style: str | dict[str, float],
    width: int,
    height: int,
    *,
    scale: float = 2.0,
) -> tuple[Pixels, Pixels]:
    """Return a photograph and its stylized image, both `width` x `height` pixels, stylized at `scale` times that."""
    content = fit(photograph, round(scale * width), round(scale * height))
    stylized = ImageData(client.stylize(content.pixels, style))
    return resize(content, width, height).pixels, resize(stylized, width, height).pixels


def write_below(name: str, max_bytes: int, encode: Callable[[int], bytes]) -> None:
    """Write the file in the highest quality that keeps it below `max_bytes`."""
    for quality in range(90, 0, -5):
        if len(data := encode(quality)) <= max_bytes:
            break
    with atomic_write(FOLDER / name) as beside:
        beside.write_bytes(data)
    say(f"wrote {FOLDER / name}: {len(data) / 1000:.0f} kB, quality {quality}")


def save(image: ImageData, name: str) -> None:
    """Write an image as JPEG."""
    save_image(image, FOLDER / f"{name}.jpg", quality=88)
    say(f"wrote {FOLDER / name}.jpg: {image.width}x{image.height}")


if __name__ == "__main__":
    main()
