"""`nst stylize` and `nst styles`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from nst_client.client import StyleClient
from nst_core.console import fail, one_line_errors, say
from nst_core.errors import InputError, PictureError
from nst_core.images import MAX_PIXELS, image_format, open_picture, save_picture, with_pixels

Url = Annotated[
    str,
    typer.Option("--url", "-u", help="grpc://host:8001, http://host:8000 or local:model_repository.", envvar="NST_URL"),
]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for an answer.", min=0.001)]

DEFAULT_URL = "grpc://127.0.0.1:8001"


def stylize(
    photos: Annotated[
        list[Path], typer.Argument(help="Pictures: JPEG, PNG, WebP, TIFF, BMP, GIF.", metavar="PHOTO...")
    ],
    style: Annotated[
        str,
        typer.Option("--style", "-s", help="A style that the server has (nst styles), or a mix: wave:0.7,scream:0.3."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A file (.jpg .png .webp), or a folder for several pictures.")
    ],
    url: Url = DEFAULT_URL,
    max_side: Annotated[
        int | None, typer.Option(help="Shrink a larger picture to this longer side, pixels.", min=16)
    ] = None,
    quality: Annotated[int, typer.Option(help="Of JPEG and WebP.", min=1, max=100)] = 92,
    max_pixels: Annotated[int, typer.Option(help="Refuse to decode a picture of more pixels.", min=1)] = MAX_PIXELS,
    timeout: Timeout = 60.0,
) -> None:
    """Paint pictures in a style, by a server or in this process."""
    with one_line_errors("local"), StyleClient(url, timeout=timeout) as client:
        mix = _mix(style)
        targets = _targets(photos, output)
        failed = 0
        for photo, target in zip(photos, targets, strict=True):
            try:
                picture = open_picture(photo, max_pixels=max_pixels, max_side=max_side)
                started = time.perf_counter()
                painted = client.stylize(picture.pixels, mix)
                milliseconds = 1000 * (time.perf_counter() - started)
            except PictureError as error:
                if len(photos) == 1:
                    raise
                fail(error)  # one bad file does not keep the others waiting
                failed += 1
                continue
            save_picture(with_pixels(picture, painted), target, quality=quality)
            say(f"{photo} -> {target}  {picture.width}x{picture.height}  {milliseconds:.0f} ms")
        if failed:
            raise InputError(f"{failed} of {len(photos)} pictures could not be read")


def styles(url: Url = DEFAULT_URL, timeout: Timeout = 10.0) -> None:
    """List the styles that a server offers."""
    with one_line_errors("local"), StyleClient(url, timeout=timeout) as client:
        offered = client.styles()
        for style in offered:
            typer.echo(style.name)
        if not offered:
            raise InputError(f"{url} offers no style")


def _mix(text: str) -> dict[str, float]:
    """`wave:0.7,scream:0.3` by name; a name alone has the weight 1."""
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, separator, weight = part.strip().rpartition(":")
        try:
            mix[name if separator else weight] = float(weight) if separator else 1.0
        except ValueError:
            raise InputError(f"{part!r} is no style with a weight: name:weight, such as wave:0.7") from None
    return mix


def _targets(photos: list[Path], output: Path) -> list[Path]:
    """Where each picture goes: `output` itself for one, else a file of its name in the folder `output`."""
    if len(photos) == 1 and output.suffix and not output.is_dir():
        image_format(output)
        return [output]
    if output.is_file():
        raise InputError(f"{output} is a file; several pictures need a folder")
    targets = [output / f"{photo.stem}{_suffix(photo)}" for photo in photos]
    if twice := {str(target) for target in targets if targets.count(target) > 1}:
        raise InputError(f"several pictures would become {', '.join(sorted(twice))}: give them different names")
    if own := [photo for photo, target in zip(photos, targets, strict=True) if photo.resolve() == target.resolve()]:
        raise InputError(f"{own[0]} would be overwritten: choose another folder than its own")
    return targets


def _suffix(photo: Path) -> str:
    """The photograph's own format where it can be written, else PNG."""
    return photo.suffix if photo.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") else ".png"


stylize_app = typer.Typer(add_completion=False)
stylize_app.command()(stylize)
styles_app = typer.Typer(add_completion=False)
styles_app.command()(styles)
