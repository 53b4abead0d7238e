"""What `StyleClient` and `AsyncStyleClient` share: everything but the waiting."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from nst_client.errors import Rejected, ServiceError, TimedOut, Unavailable, UnknownStyle, Unreachable
from nst_client.pixels import as_batch, like_content, pillow_image
from nst_client.retries import RetryPolicy
from nst_client.styles import Style, offered_styles, resolve_style_weights, statistics_model, tiled_model
from nst_client.tiles import thumbnail
from nst_client.transports import buffers, cuda_pixels
from nst_client.transports.base import Array, ModelConfig, Request, StyleWeights, Transport
from nst_client.transports.connect import connect
from nst_client.transports.coroutines import in_thread
from nst_client.transports.cuda_pixels import CudaPixels
from nst_client.transports.statistics import Statistics
from nst_core import images
from nst_core.contract import IMAGE, STATISTICS, STYLE_WEIGHTS, STYLIZED
from nst_core.errors import InputError, NstError
from nst_core.images import Pixels

log = logging.getLogger(__name__)

ImageOrArray = TypeVar("ImageOrArray")
"""`uint8 [H, W, 3]` or `[N, H, W, 3]`, an image of Pillow, or such an array on a GPU."""
StyleChoice = str | Mapping[str, float]
"""The name of a style, or the weights of several, by name."""
OnTile = Callable[[int, int], None]
"""Called with the number of tiles that are done, and of all tiles."""


class UnsupportedSize(InputError):
    """The model does not take images of this size."""


class BaseClient:
    """Finds the model of a style, and sends requests that the model takes."""

    _aio: ClassVar[bool]

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 3,
        token: str | None = None,
        ca: Path | None = None,
        shared_memory: bool | None = None,
        transport: Transport | None = None,
    ) -> None:
        """Nothing is sent yet.

        `timeout` is for one request, in seconds, with all its retries; an image in tiles takes a request for each tile.
        `retries` is how often a request is sent again after `Unreachable` or `Unavailable`, with growing pauses.
        `token` is the server's token. `ca` is a PEM file of the certificates that grpcs:// and https:// trust; the
        default is the system's. `transport` replaces the transport that a URL selects.

        `shared_memory` saves copying the pixels to one server on this host. None uses it from the second request on,
        for as many concurrent requests as pays off, and falls back to messages where it is not available; True uses
        it for every request, or raises the reason why it cannot; False never uses it.

        Raises `InputError` for a URL of another kind or an invalid value.
        """
        self._retrying = RetryPolicy(timeout, retries, self._aio)
        if (url is None) == (transport is None):
            raise InputError("a client needs either the URL of a server or a transport")
        if transport is None:
            transport = connect(
                url if url is not None else "",
                timeout=timeout,
                token=token,
                ca=ca,
                shared_memory=shared_memory,
                aio=self._aio,
            )
        self.url = transport.address
        self._transport = transport
        self._styles: dict[str, Style] = {}
        self._unusable: dict[str, NstError] = {}
        """Why models of the server cannot be used, by model."""

    async def _fetch_styles(self) -> dict[str, Style]:
        """The styles that the server offers now, by name. A model that cannot be used does not hide the others."""
        configs: dict[str, ModelConfig] = {}
        unusable: dict[str, NstError] = {}
        for model in await self._retrying.call(self._transport.models):
            try:
                if config := await self._retrying.call(self._config, model):
                    configs[model] = config
            except Unavailable:
                continue
            except (Unreachable, TimedOut):
                raise
            except NstError as error:
                unusable[model] = error
        styles, invalid = offered_styles(configs)
        unusable |= invalid
        if unusable and not styles:
            raise next(iter(unusable.values()))
        for model, reason in unusable.items():
            if str(reason) != str(self._unusable.get(model, "")):
                log.warning("%s: the model %s is left out: %s", self.url, model, reason)
        self._styles, self._unusable = styles, unusable
        return styles

    async def _sorted_styles(self) -> list[Style]:
        return sorted((await self._fetch_styles()).values(), key=lambda style: style.name)

    async def _config(self, model: str, seconds: float) -> ModelConfig | None:
        """None if the model was unloaded since it was listed; `Unavailable` if another of several servers has it."""
        try:
            return await self._transport.config(model, seconds)
        except Unavailable:
            if model in await self._transport.models(seconds):
                raise
            return None

    async def _stylize(
        self, content: ImageOrArray, style_choice: StyleChoice, on_tile: OnTile | None, tiled: bool = False
    ) -> ImageOrArray:
        if isinstance(content, Image.Image):
            # As the commands read a file: upright, in sRGB, 8 bits a channel.
            opened = await in_thread(images.from_pillow, content, aio=self._aio)
            pixels = await self._stylize(opened.pixels, style_choice, on_tile, tiled)
            image: Any = pillow_image(pixels, opened.alpha)
            return cast(ImageOrArray, image)
        batch = as_batch(content)
        if isinstance(batch, CudaPixels) and not getattr(self._transport, "takes_cuda", False):
            raise cuda_pixels.not_shared(self.url)
        report = on_tile or (lambda done, total: None)
        style, weights = await self._resolve(style_choice, self._styles)
        while True:
            try:
                stylized = await self._stylize_batch(batch, style, weights, report, tiled)
                break
            except (UnsupportedSize, Rejected):
                # The model may be another one since it was listed.
                asked, asked_weights = style, weights
                style, weights = await self._resolve(style_choice, await self._fetch_styles())
                if style == asked and _equal(weights, asked_weights):
                    raise
                log.info("%s: the model %s is another one now: asked again", self.url, style.model)
        result: ImageOrArray = like_content(content, stylized)
        return result

    async def _stylize_batch(
        self, batch: Pixels, style: Style, weights: StyleWeights | None, on_tile: OnTile, tiled: bool
    ) -> Pixels:
        _, height, width, _ = batch.shape
        if min(height, width) < style.min_side:
            raise UnsupportedSize(
                f"{width}x{height} is too small for {style.name}: it takes {style.min_side} pixels and more a side"
            )
        if tiled or (not style.takes(height, width) and style.tiles is not None):
            return await self._stylize_by_tiles(batch, style, weights, on_tile)
        return await self._stylize_whole(batch, style, weights)

    async def _stylize_whole(self, batch: Pixels, style: Style, weights: StyleWeights | None) -> Pixels:
        n, height, width, _ = batch.shape
        if not style.takes(height, width):
            limits = f"{style.max_pixels / 1e6:.1f} megapixels"
            if style.max_side is not None:
                limits += f" and {style.max_side} pixels a side"
            raise UnsupportedSize(
                f"{width}x{height} is too large for {style.name}: it takes {limits}; "
                f"shrink it with --max-side {style.fitting_side(height, width)}, or give the server its tiles: "
                "nst-export --tiled"
            )
        # As many images a request as the model takes, and no more pixels than its largest image has.
        step = max(1, min(style.max_batch or n, style.max_pixels // (height * width)))
        whole: Any = None
        for start in range(0, n, step):
            pixels = batch[start : start + step]
            request = Request(style.model, {IMAGE: pixels, **_weights_input(weights, len(pixels))}, STYLIZED)
            stylized = await self._infer(request, pixels.shape, np.uint8)
            if len(pixels) == n:
                return stylized
            if whole is None:
                whole = batch.empty() if isinstance(batch, CudaPixels) else buffers.empty(batch.shape)
            whole[start : start + step] = stylized
        return cast(Pixels, whole)

    async def _stylize_by_tiles(
        self, batch: Pixels, style: Style, weights: StyleWeights | None, on_tile: OnTile
    ) -> Pixels:
        if style.tiles is None and tiled_model(style) in self._unusable:
            raise self._unusable[tiled_model(style)]
        if style.tiles is None:
            raise ServiceError(
                f"{self.url} cannot stylize in tiles with {style.name}: "
                "give it the pair of models of nst-export --tiled"
            )
        if isinstance(batch, CudaPixels):
            raise InputError(
                "pixels on a GPU are not stylized in tiles: give them in main memory, such as tensor.cpu().numpy()"
            )
        n, height, width, _ = batch.shape
        weights_input, stylized = _weights_input(weights, 1), buffers.empty(batch.shape)
        done, total = count(1), n * style.tiles.count(height, width)
        log.info("%s: %dx%d in %d tiles", style.name, width, height, style.tiles.count(height, width))
        for pixels, result in zip(batch, stylized, strict=True):
            small = await in_thread(thumbnail, pixels, style.min_side, aio=self._aio)
            request = Request(statistics_model(style), {IMAGE: small[None], **weights_input}, STATISTICS)
            statistics = await self._infer(request, (1, None), np.float32)
            for tile in style.tiles.tiles(height, width):
                cut = tile.cut(pixels)
                inputs = {IMAGE: cut, STATISTICS: statistics, **weights_input}
                request = Request(tiled_model(style), inputs, STYLIZED)
                tile.place(await self._infer(request, cut.shape, np.uint8), result)
                on_tile(next(done), total)
        return stylized

    async def _infer(self, request: Request, shape: tuple[int | None, ...], dtype: npt.DTypeLike) -> Array:
        """The output, which must have this type and shape (None: any length)."""
        output = await self._retrying.call(self._transport.infer, request)
        fits = len(shape) == output.ndim and all(
            expected in (None, length) for expected, length in zip(shape, output.shape, strict=True)
        )
        if output.dtype != dtype or not fits:
            raise Rejected(
                f"the model {request.model} answered {output.dtype} {output.shape} to uint8 "
                f"{request.inputs[IMAGE].shape}: not a style model of contract 1"
            )
        return output

    async def _statistics(self, name: str) -> Statistics:
        style, _ = await self._resolve(name, self._styles)
        return await self._retrying.call(self._transport.statistics, style.model)

    async def _resolve(self, choice: StyleChoice, styles: Mapping[str, Style]) -> tuple[Style, StyleWeights | None]:
        """A style and the weights for its model: of `styles` if they have all names, else of what is offered now."""
        weights = {choice: 1.0} if isinstance(choice, str) else dict(choice)
        if not weights.keys() <= styles.keys():
            styles = await self._fetch_styles()
        for name in weights:
            if name in self._unusable and name not in styles:
                raise self._unusable[name]
            if name not in styles:
                left_out = f"; left out: {', '.join(self._unusable)}" if self._unusable else ""
                raise UnknownStyle(f"{self.url} has no style {name!r}; it has: {', '.join(styles) or 'none'}{left_out}")
        return resolve_style_weights([styles[name] for name in weights], list(weights.values()))


def _equal(weights: StyleWeights | None, others: StyleWeights | None) -> bool:
    if weights is None or others is None:
        return weights is others
    return np.array_equal(weights, others)


def _weights_input(weights: StyleWeights | None, n: int) -> dict[str, StyleWeights]:
    """The input of style weights for `n` images; none for a model of one style."""
    return {} if weights is None else {STYLE_WEIGHTS: np.repeat(weights[None], n, axis=0)}
