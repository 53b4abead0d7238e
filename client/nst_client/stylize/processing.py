"""How an image is stylized: by which styles, and what is done before and after the model.

A stylized image records in its EXIF data the command that made it (`StylizeOptions.command`). So a run that is started
again knows what is finished, and does not take an image in another style for it.
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
from nst_client.errors import UnknownStyle
from nst_client.styles import resolve_style_weights
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
    """How all images of a run are stylized: the weights of styles, by name, and the options of `nst stylize`."""

    style_weights: Mapping[str, float]
    strength: float = 1.0
    preserve_color: bool = False
    max_side: int | None = None
    quality: int = 92
    max_pixels: int = DEFAULT_MAX_PIXELS

    @property
    def command(self) -> str:
        """The command that gives the same result, in ASCII, without options that do not affect it."""
        weights = ",".join(f"{name}:{weight:g}" for name, weight in self.style_weights.items())
        words = ["nst", "stylize", "--style", weights, "--quality", str(self.quality)]
        words += ["--strength", f"{self.strength:g}"] if self.strength < 1 else []
        words += ["--preserve-color"] if self.preserve_color else []
        words += ["--max-side", str(self.max_side)] if self.max_side else []
        return shlex.join(words).encode("ascii", "backslashreplace").decode()

    def check(self, client: StyleClient) -> None:
        """Raise what would fail for every image: `UnknownStyle`, or `InputError` for the weights."""
        offered = {style.name: style for style in client.styles()}
        if missing := [name for name in self.style_weights if name not in offered]:
            raise UnknownStyle(f"{client.url} has no style {missing[0]!r}; it has: {', '.join(offered) or 'none'}")
        resolve_style_weights([offered[name] for name in self.style_weights], list(self.style_weights.values()))

    def open(self, source: Path | BinaryIO) -> ImageData:
        """The content image as the model gets it. Raises `ImageError`."""
        return open_image(source, max_pixels=self.max_pixels, max_side=self.max_side)

    def stylize(
        self, content: ImageData, client: StyleClient, on_tile: OnTile | None = None
    ) -> tuple[ImageData, float]:
        """The stylized image of an opened one, and the milliseconds in the server.

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
        """Read, stylize and write an image; `kind` is Pillow's name of the format on the standard output.

        Raises `ImageError`, `InputError` for an image that its format cannot hold, `WriteError`, and what
        `StyleClient.stylize` raises.
        """
        content = self.open(read_stdin(self.max_pixels) if job.source == STDIO else job.source)
        if job.target == STDIO:
            own_kind = content.metadata.kind
            kind = kind or (own_kind if own_kind in WRITABLE_FORMATS.values() else "PNG")
        else:
            kind = image_format(job.target)
        check_size(content.width, content.height, kind)  # before the server works in vain
        result, milliseconds = self.stylize(content, client, on_tile)
        if job.target == STDIO:
            write_image_to_stdout(encode_image(result, kind, quality=self.quality))
        else:
            save_image(result, job.target, quality=self.quality)
        return Outcome(job, content.width, content.height, milliseconds)


def postprocess(content: Pixels, stylized: Pixels, strength: float, preserve_color: bool) -> Pixels:
    """A stylized image, with the content image's colours if wanted, blended into it by `strength`."""
    if preserve_color:
        stylized = keep_colors(content, stylized)
    return blend(content, stylized, strength) if strength < 1 else stylized
