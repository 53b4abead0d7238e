"""What `StyleClient` and `AsyncStyleClient` share: everything except blocking and awaiting."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from nst_client.errors import Rejected, ServiceError, TimedOut, Unavailable, Unreachable
from nst_client.pixels import as_batch, like_content, pillow_image
from nst_client.retries import RetryPolicy
from nst_client.styles import (
    Style,
    offered_styles,
    resolve_style_weights,
    statistics_model,
    tiled_model,
    unknown_style,
)
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
"""`uint8 [H, W, 3]` or `[N, H, W, 3]`, in main memory or on a GPU, or a Pillow image."""
StyleChoice = str | Mapping[str, float]
"""A style's name, or a mapping of style names to weights."""
OnTile = Callable[[int, int], None]
"""A callback `(done, total)` with the number of finished tiles and of all tiles."""


class UnsupportedSize(InputError):
    """The image is smaller or larger than the model accepts."""


class BaseClient:
    """Finds the model of a style, and splits images into requests that the model accepts."""

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
        """Create a client. It connects with its first call.

        Args:
            url: The server, or a sequence of gRPC URLs of servers with the same models; see `StyleClient`.
            timeout: Seconds for one request and all its retries. An image in tiles takes one request per tile.
            retries: How often a request is sent again after `Unreachable` or `Unavailable`, with growing pauses.
            token: The server's token.
            ca: A PEM file of the certificates that grpcs:// and https:// trust; by default the system's.
            shared_memory: Whether pixels go to a server on this host through shared memory. None uses it from the
                second request on where it pays off, and sends messages where it is not available. True uses it for
                every request, or raises the reason why it cannot. False never uses it.
            transport: Replaces the transport that a URL selects, for example with `MockTransport`.

        Raises:
            InputError: The URL or another value is invalid, or both or neither of `url` and `transport` are given.
        """
        self._retrying = RetryPolicy(timeout, retries, self._aio)
        if (url is None) == (transport is None):
            raise InputError("a client needs either url or transport; give one of them")
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
        """The reason for each model of the server that cannot be used."""

    async def _fetch_styles(self) -> dict[str, Style]:
        """Return the styles that the server offers now, by name. Skip models that cannot be used."""
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
                log.warning("%s: skipping model %s: %s", self.url, model, reason)
        self._styles, self._unusable = styles, unusable
        return styles

    async def _sorted_styles(self) -> list[Style]:
        return sorted((await self._fetch_styles()).values(), key=lambda style: style.name)

    async def _config(self, model: str, seconds: float) -> ModelConfig | None:
        """Return a model's config, or None if the model was unloaded after it was listed.

        Raises `Unavailable` if the model is loaded on another of several servers.
        """
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
            # As the commands read a file: upright, in sRGB, 8 bits per channel.
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
                # The model may have been replaced after it was listed.
                asked, asked_weights = style, weights
                style, weights = await self._resolve(style_choice, await self._fetch_styles())
                if style == asked and _equal(weights, asked_weights):
                    raise
                log.info("%s: model %s has changed; sending the request again", self.url, style.model)
        result: ImageOrArray = like_content(content, stylized)
        return result

    async def _stylize_batch(
        self, batch: Pixels, style: Style, weights: StyleWeights | None, on_tile: OnTile, tiled: bool
    ) -> Pixels:
        _, height, width, _ = batch.shape
        if min(height, width) < style.min_side:
            raise UnsupportedSize(
                f"{width}x{height} is too small for {style.name}, whose minimum side is {style.min_side} pixels; "
                "enlarge the image"
            )
        if tiled or (not style.takes(height, width) and style.tiles is not None):
            return await self._stylize_by_tiles(batch, style, weights, on_tile)
        return await self._stylize_whole(batch, style, weights)

    async def _stylize_whole(self, batch: Pixels, style: Style, weights: StyleWeights | None) -> Pixels:
        n, height, width, _ = batch.shape
        if not style.takes(height, width):
            limits = f"{style.max_pixels / 1e6:.1f} megapixels"
            if style.max_side is not None:
                limits += f" and {style.max_side} pixels per side"
            raise UnsupportedSize(
                f"{width}x{height} is too large for {style.name}, whose maximum is {limits}; shrink the image with "
                f"--max-side {style.fitting_side(height, width)}, or export the model with nst export --tiled"
            )
        # As many images per request as the model accepts, and no more pixels than its largest image has.
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
                f"{self.url} has no models to stylize in tiles with {style.name}; "
                "export the style again with nst export --tiled"
            )
        if isinstance(batch, CudaPixels):
            raise InputError(
                "pixels on a GPU cannot be stylized in tiles; pass them in main memory, such as tensor.cpu().numpy()"
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
        """Return the output. Raises `Rejected` unless it has this type and shape (None: any length)."""
        output = await self._retrying.call(self._transport.infer, request)
        fits = len(shape) == output.ndim and all(
            expected in (None, length) for expected, length in zip(shape, output.shape, strict=True)
        )
        if output.dtype != dtype or not fits:
            raise Rejected(
                f"model {request.model} returned {output.dtype} {output.shape} for uint8 "
                f"{request.inputs[IMAGE].shape}, so it is not a style model; export it again with nst export"
            )
        return output

    async def _statistics(self, name: str) -> Statistics:
        style, _ = await self._resolve(name, self._styles)
        return await self._retrying.call(self._transport.statistics, style.model)

    async def _resolve(self, choice: StyleChoice, styles: Mapping[str, Style]) -> tuple[Style, StyleWeights | None]:
        """Return the chosen style and the weights for its model.

        Look in `styles` first; if a name is missing there, ask the server again. Raises `UnknownStyle`.
        """
        weights = {choice: 1.0} if isinstance(choice, str) else dict(choice)
        if not weights.keys() <= styles.keys():
            styles = await self._fetch_styles()
        for name in weights:
            if name in self._unusable and name not in styles:
                raise self._unusable[name]
            if name not in styles:
                raise unknown_style(self.url, name, styles, self._unusable)
        return resolve_style_weights([styles[name] for name in weights], list(weights.values()))


def _equal(weights: StyleWeights | None, others: StyleWeights | None) -> bool:
    if weights is None or others is None:
        return weights is others
    return np.array_equal(weights, others)


def _weights_input(weights: StyleWeights | None, n: int) -> dict[str, StyleWeights]:
    """Return the input `style_weights` `[n, S]` for `n` images; empty for a model of one style."""
    return {} if weights is None else {STYLE_WEIGHTS: np.repeat(weights[None], n, axis=0)}
