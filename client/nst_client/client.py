"""`StyleClient`: pictures to stylised pictures, by the name of a style."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import numpy as np

from nst_client.errors import UnknownStyle
from nst_client.transports import Transport, connect
from nst_core.errors import InputError
from nst_core.images import MAX_PIXELS, Pixels


@dataclass(frozen=True)
class Style:
    """A style that a server offers, and the sizes that it takes (pixels)."""

    name: str
    min_side: int = 16
    max_pixels: int = MAX_PIXELS


class StyleClient:
    """Styles behind a URL: `grpc://host:8001`, `http://host:8000` or `local:model_repository`.

    Not for several threads at once; make one a thread. Use it in a `with` block, or `close` it.
    """

    def __init__(self, url: str, *, timeout: float = 60.0) -> None:
        """`timeout` is for one request, in seconds. Raises `InputError` for a URL of another kind."""
        self.url = url
        self._transport: Transport = connect(url, timeout)
        self._styles: dict[str, Style] = {}

    def styles(self) -> list[Style]:
        """What the server offers now, by name. Raises `Unreachable` or `TimedOut`."""
        self._styles = {}
        for name in sorted(self._transport.models()):
            parameters = self._transport.parameters(name)
            if "styles" in parameters:  # other models may live on the same server
                limits = {key: int(parameters[key]) for key in ("min_side", "max_pixels") if key in parameters}
                self._styles[name] = Style(name, **limits)
        return list(self._styles.values())

    def stylize(self, pixels: Pixels, style: str) -> Pixels:
        """Paint pictures, sRGB `uint8 [H, W, 3]` or `[N, H, W, 3]`; the answer has the same shape.

        Raises `InputError` for another shape or a size beyond the model's limits, `UnknownStyle`,
        `Unreachable`, `TimedOut`, or `Rejected` with the server's own words.
        """
        if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-1] != 3:
            raise InputError(f"pixels are {pixels.dtype} {pixels.shape}, expected uint8 [H, W, 3] or [N, H, W, 3]")
        limits = self._style(style)
        height, width = pixels.shape[-3:-1]
        if min(height, width) < limits.min_side:
            raise InputError(
                f"{width}x{height} is too small for {style}: it takes {limits.min_side} pixels and more a side"
            )
        if height * width > limits.max_pixels:
            fitting = int(max(height, width) * (limits.max_pixels / (height * width)) ** 0.5)
            raise InputError(
                f"{width}x{height} is too large for {style}: it takes {limits.max_pixels / 1e6:.1f} megapixels; "
                f"shrink it with --max-side {fitting}"
            )
        batch = np.ascontiguousarray(pixels if pixels.ndim == 4 else pixels[None])
        painted = self._transport.infer(style, batch)
        return painted if pixels.ndim == 4 else painted[0]

    def close(self) -> None:
        """End the connection."""
        self._transport.close()

    def __enter__(self) -> StyleClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _style(self, name: str) -> Style:
        if name not in self._styles:
            self.styles()
        if name not in self._styles:
            offered = ", ".join(self._styles) or "none"
            raise UnknownStyle(f"{self.url} has no style {name!r}; it has: {offered}")
        return self._styles[name]
