"""How an image is stylized: in which styles, and what happens before and after the model.

A stylized image's EXIF data records the command that made it (`StylizeOptions.command`). A run that starts again
therefore recognises finished images, and does not mistake an image in another style for one.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from nst_client.base_client import OnTile
from nst_client.client import StyleClient
from nst_client.styles import resolve_style_weights, unknown_style
from nst_client.stylize.jobs import Job, Outcome
from nst_client.stylize.stdio import STDIO, read_stdin, write_image_to_stdout
from nst_core.images import (
    DEFAULT_MAX_PIXELS,
    WRITABLE_FORMATS,
    ImageData,
    Pixels,
    blend,
    check_size,
    encode_image,
    image_format,
    keep_colors,
    open_image,
    save_image,
)


@dataclass(frozen=True)
class StylizeOptions:
    """How all images of a run are stylized: the style weights, by name, and the options of `nst stylize`."""

    style_weights: Mapping[str, float]
    strength: float = 1.0
    preserve_color: bool = False
    max_side: int | None = None
    quality: int = 92
    max_pixels: int = DEFAULT_MAX_PIXELS

    @property
    def command(self) -> str:
        """The command that gives the same result, in ASCII, without options that do not affect the result."""
        weights = ",".join(f"{name}:{weight:g}" for name, weight in self.style_weights.items())
        words = ["nst", "stylize", "--style", weights, "--quality", str(self.quality)]
        words += ["--strength", f"{self.strength:g}"] if self.strength < 1 else []
        words += ["--preserve-color"] if self.preserve_color else []
        words += ["--max-side", str(self.max_side)] if self.max_side else []
        return shlex.join(words).encode("ascii", "backslashreplace").decode()

    def check(self, client: StyleClient) -> None:
        """Raise what would fail for every image: `UnknownStyle`, or `InputError` for invalid weights."""
        offered = {style.name: style for style in client.styles()}
        if missing := [name for name in self.style_weights if name not in offered]:
            raise unknown_style(client.url, missing[0], offered)
        resolve_style_weights([offered[name] for name in self.style_weights], list(self.style_weights.values()))

    def open(self, source: Path | BinaryIO) -> ImageData:
        """Open a content image as the model gets it. Raises `ImageError`."""
        return open_image(source, max_pixels=self.max_pixels, max_side=self.max_side)

    def stylize(
        self, content: ImageData, client: StyleClient, on_tile: OnTile | None = None
    ) -> tuple[ImageData, float]:
        """Stylize an opened image; returns the stylized image and the server's latency in milliseconds.

        Raises what `StyleClient.stylize` raises.
        """
        started = time.perf_counter()
        stylized = client.stylize(content.pixels, self.style_weights, on_tile=on_tile)
        milliseconds = 1000 * (time.perf_counter() - started)
        pixels = postprocess(content.pixels, stylized, self.strength, self.preserve_color)
        return replace(content, pixels=pixels, metadata=replace(content.metadata, process=self.command)), milliseconds

    def stylize_file(
        self, job: Job, client: StyleClient, kind: str | None = None, on_tile: OnTile | None = None
    ) -> Outcome:
        """Read, stylize and write an image; `kind` is Pillow's name of the format for stdout.

        Raises `ImageError`, `InputError` for an image that its format cannot hold, `WriteError`, and what
        `StyleClient.stylize` raises.
        """
        content = self.open(read_stdin(self.max_pixels) if job.source == STDIO else job.source)
        if job.target == STDIO:
            own_kind = content.metadata.kind
            kind = kind or (own_kind if own_kind in WRITABLE_FORMATS.values() else "PNG")
        else:
            kind = image_format(job.target)
        check_size(content.width, content.height, kind)  # before the server does the work in vain
        result, milliseconds = self.stylize(content, client, on_tile)
        if job.target == STDIO:
            write_image_to_stdout(encode_image(result, kind, quality=self.quality))
        else:
            save_image(result, job.target, quality=self.quality)
        return Outcome(job, content.width, content.height, milliseconds)


def postprocess(content: Pixels, stylized: Pixels, strength: float, preserve_color: bool) -> Pixels:
    """Blend a stylized image `uint8 [H, W, 3]` with its content image by `strength`; optionally keep the colours."""
    if preserve_color:
        stylized = keep_colors(content, stylized)
    return blend(content, stylized, strength) if strength < 1 else stylized
