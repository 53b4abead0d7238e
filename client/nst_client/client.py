"""`StyleClient`: pictures to stylised pictures, by the name of a style."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from nst_client.errors import UnknownStyle
from nst_client.transports import Transport, Weights, connect
from nst_core.errors import InputError
from nst_core.images import MAX_PIXELS, Pixels


@dataclass(frozen=True)
class Style:
    """A style that a server offers: the model that paints it, and the sizes that it takes (pixels).

    It is number `index` of the `count` styles of its model.
    """

    name: str
    model: str
    index: int = 0
    count: int = 1
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
        """What the server offers now, by name. Raises `Unreachable` or `TimedOut`.

        A model of one style is called by its own name, the styles of a model of several by theirs, and by
        model/style where another has the same name.
        """
        parameters = {model: self._transport.parameters(model) for model in self._transport.models()}
        paints = {model for model, own in parameters.items() if own.get("purpose", "style") == "style"}
        named = {model: parameters[model]["styles"].split(",") for model in paints if "styles" in parameters[model]}
        self._styles = {}
        for model, names in sorted(named.items(), key=lambda one: (len(one[1]) > 1, one[0])):
            limits = {
                key: int(parameters[model][key]) for key in ("min_side", "max_pixels") if key in parameters[model]
            }
            for index, own in enumerate(names):
                name = own if len(names) > 1 else model
                name = f"{model}/{own}" if name in self._styles else name
                self._styles[name] = Style(name, model, index, len(names), **limits)
        return sorted(self._styles.values(), key=lambda style: style.name)

    def stylize(self, pixels: Pixels, style: str | Mapping[str, float]) -> Pixels:
        """Paint pictures, sRGB `uint8 [H, W, 3]` or `[N, H, W, 3]`; the answer has the same shape.

        `style` is a name, or names with their weights, of styles that one model has: a mix.
        Raises `InputError` for another shape, a size beyond the model's limits or a mix that cannot be,
        `UnknownStyle`, `Unreachable`, `TimedOut`, or `Rejected` with the server's own words.
        """
        if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-1] != 3:
            raise InputError(f"pixels are {pixels.dtype} {pixels.shape}, expected uint8 [H, W, 3] or [N, H, W, 3]")
        mix = {style: 1.0} if isinstance(style, str) else dict(style)
        chosen = [self._style(name) for name in mix]
        limits, weights = _mixed(chosen, list(mix.values()))
        height, width = pixels.shape[-3:-1]
        if min(height, width) < limits.min_side:
            raise InputError(
                f"{width}x{height} is too small for {limits.name}: it takes {limits.min_side} pixels and more a side"
            )
        if height * width > limits.max_pixels:
            fitting = int(max(height, width) * (limits.max_pixels / (height * width)) ** 0.5)
            raise InputError(
                f"{width}x{height} is too large for {limits.name}: it takes {limits.max_pixels / 1e6:.1f} megapixels; "
                f"shrink it with --max-side {fitting}"
            )
        batch = np.ascontiguousarray(pixels if pixels.ndim == 4 else pixels[None])
        rows = None if weights is None else np.repeat(weights[None], len(batch), axis=0)
        painted = self._transport.infer(limits.model, batch, rows)
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


def _mixed(styles: list[Style], weights: list[float]) -> tuple[Style, Weights | None]:
    """The first of the styles, and the weights `[S]` of all styles of its model; None for a model of one."""
    if not styles or not (min(weights) >= 0 and 0 < sum(weights) < float("inf")):
        raise InputError(f"weights of styles are {weights}: give at least one above 0 and none below")
    first = styles[0]
    if others := [style for style in styles if style.model != first.model]:
        raise InputError(
            f"{first.name} is painted by the model {first.model} and {others[0].name} by {others[0].model}: "
            "only styles of one model can be mixed"
        )
    if first.count == 1:
        return first, None
    row = np.zeros(first.count, np.float32)
    for style, weight in zip(styles, weights, strict=True):
        row[style.index] += weight
    return first, row
