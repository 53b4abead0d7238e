"""`StyleClient` and `AsyncStyleClient`: pictures to stylised pictures, by the name of a style."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from nst_client.errors import Rejected, ServiceError, TimedOut, Unavailable, UnknownStyle, Unreachable
from nst_client.styles import Style, offered, resolve_style_weights, statistics_model, tiled_model
from nst_client.tiles import thumbnail
from nst_client.transports import buffers
from nst_client.transports.base import (
    Array,
    ModelConfig,
    Request,
    Transport,
    Weights,
    connect,
)
from nst_client.transports.coroutines import in_thread, pause, run_blocking
from nst_client.transports.statistics import Statistics
from nst_client.transports.triton import cuda_memory
from nst_client.transports.triton.cuda_memory import CudaPixels, pixels_on_gpu
from nst_core import images
from nst_core.contract import IMAGE, STATISTICS, STYLE_WEIGHTS, STYLIZED
from nst_core.errors import InputError, NstError
from nst_core.images import Pixels

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0
"""Seconds between an attempt and the next: each pause is twice the one before, and half of each is left to chance."""

log = logging.getLogger("nst_client")

T = TypeVar("T")
Painting = TypeVar("Painting")
"""`uint8 [H, W, 3]` or `[N, H, W, 3]`, an image of Pillow, or such an array on a GPU."""
Mix = str | Mapping[str, float]
OnTile = Callable[[int, int], None]


class _BeyondLimits(InputError):
    """A picture of a size that the model does not take."""


class _Client:
    """What the two clients have in common: all but the waiting."""

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

        `timeout` is for one request, in seconds, all its attempts together; a picture in tiles is a request a tile.
        `retries` is how often a request is sent again after `Unreachable` or `Unavailable`, with growing pauses.
        `token` is the secret that the server asks for. `ca` is a file of the certificates, PEM, that grpcs:// and
        https:// trust; by default those that the system trusts. `transport` is used instead of a URL's.

        `shared_memory` spares the copying of pixels to one server on this host. None uses it from the second request
        on, for as many requests at a time as is worth it, and goes without where it cannot be had; True uses it for
        every request, or raises what stands in the way; False never does.

        Raises `InputError` for a URL of another kind or a value that cannot be.
        """
        if not timeout > 0 or retries < 0:
            raise InputError(f"timeout is {timeout} and retries {retries}: they must be above 0 and not below 0")
        if (url is None) == (transport is None):
            raise InputError("a client needs the URL of a server or a transport, one of them")
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
        self._transport, self._timeout, self._retries = transport, timeout, retries
        self._styles: dict[str, Style] = {}
        self._wrong: dict[str, NstError] = {}
        """Why models that the server has cannot be used, by name."""

    async def _list(self) -> dict[str, Style]:
        """The styles that the server offers now, by name. A model that cannot be used keeps nobody from the others."""
        configs: dict[str, ModelConfig] = {}
        wrong: dict[str, NstError] = {}
        for model in await self._request(self._transport.models):
            try:
                if config := await self._request(self._config, model):
                    configs[model] = config
            except Unavailable:
                continue
            except (Unreachable, TimedOut):
                raise
            except NstError as error:
                wrong[model] = error
        styles, misread = offered(configs)
        wrong |= misread
        if wrong and not styles:
            raise next(iter(wrong.values()))
        for model, why in wrong.items():
            if str(why) != str(self._wrong.get(model, "")):
                log.warning("%s: the model %s is left out: %s", self.url, model, why)
        self._styles, self._wrong = styles, wrong
        return styles

    async def _listed(self) -> list[Style]:
        return sorted((await self._list()).values(), key=lambda style: style.name)

    async def _config(self, model: str, seconds: float) -> ModelConfig | None:
        """None if the model was unloaded since it was listed; `Unavailable` if another server of several has it."""
        try:
            return await self._transport.config(model, seconds)
        except Unavailable:
            if model in await self._transport.models(seconds):
                raise
            return None

    async def _stylize(self, picture: Painting, mix: Mix, on_tile: OnTile | None, tiled: bool = False) -> Painting:
        if isinstance(picture, Image.Image):
            # The pixels that the commands would paint: upright, in sRGB, 8 bits a channel.
            opened = await in_thread(images.from_pillow, picture, aio=self._aio)
            pixels = await self._stylize(opened.pixels, mix, on_tile, tiled)
            image: Any = _image(pixels, opened.alpha)
            return cast(Painting, image)
        batch = _batch(picture)
        if isinstance(batch, CudaPixels) and not getattr(self._transport, "takes_cuda", False):
            raise cuda_memory.not_shared(self.url)
        tell = on_tile or (lambda done, total: None)
        style, weights = await self._chosen(mix, self._styles)
        while True:
            try:
                painted = await self._painted(batch, style, weights, tell, tiled)
                break
            except (_BeyondLimits, Rejected):
                # What is refused may be refused for a model that is another one since it was listed.
                asked, asked_weights = style, weights
                style, weights = await self._chosen(mix, await self._list())
                if style == asked and _same(weights, asked_weights):
                    raise
        result: Painting = _like(picture, painted)
        return result

    async def _painted(
        self, batch: Pixels, style: Style, weights: Weights | None, on_tile: OnTile, tiled: bool
    ) -> Pixels:
        _, height, width, _ = batch.shape
        if min(height, width) < style.min_side:
            raise _BeyondLimits(
                f"{width}x{height} is too small for {style.name}: it takes {style.min_side} pixels and more a side"
            )
        if tiled or (not style.takes(height, width) and style.tiles is not None):
            return await self._by_tiles(batch, style, weights, on_tile)
        return await self._whole(batch, style, weights)

    async def _whole(self, batch: Pixels, style: Style, weights: Weights | None) -> Pixels:
        n, height, width, _ = batch.shape
        if not style.takes(height, width):
            limits = f"{style.max_pixels / 1e6:.1f} megapixels"
            if style.max_side is not None:
                limits += f" and {style.max_side} pixels a side"
            raise _BeyondLimits(
                f"{width}x{height} is too large for {style.name}: it takes {limits}; "
                f"shrink it with --max-side {style.fitting_side(height, width)}, or give the server its tiles: "
                "nst-export --tiled"
            )
        # As many pictures at once as the model takes, and no more pixels than its largest picture has.
        step = max(1, min(style.max_batch or n, style.max_pixels // (height * width)))
        whole: Any = None
        for start in range(0, n, step):
            pixels = batch[start : start + step]
            request = Request(style.model, {IMAGE: pixels, **_rows(weights, len(pixels))}, STYLIZED)
            painted = await self._infer(request, pixels.shape, np.uint8)
            if len(pixels) == n:
                return painted
            if whole is None:
                whole = batch.empty() if isinstance(batch, CudaPixels) else buffers.empty(batch.shape)
            whole[start : start + step] = painted
        return cast(Pixels, whole)

    async def _by_tiles(self, batch: Pixels, style: Style, weights: Weights | None, on_tile: OnTile) -> Pixels:
        if style.tiles is None and tiled_model(style) in self._wrong:
            raise self._wrong[tiled_model(style)]
        if style.tiles is None:
            raise ServiceError(
                f"{self.url} cannot paint {style.name} by tiles: give it the pair of models of nst-export --tiled"
            )
        if isinstance(batch, CudaPixels):
            raise InputError(
                "pixels on a GPU are not painted by tiles: give them in main memory, such as tensor.cpu().numpy()"
            )
        n, height, width, _ = batch.shape
        mix, painted = _rows(weights, 1), buffers.empty(batch.shape)
        done, total = count(1), n * style.tiles.count(height, width)
        for pixels, result in zip(batch, painted, strict=True):
            small = await in_thread(thumbnail, pixels, style.min_side, aio=self._aio)
            request = Request(statistics_model(style), {IMAGE: small[None], **mix}, STATISTICS)
            shared = await self._infer(request, (1, None), np.float32)
            for tile in style.tiles.tiles(height, width):
                seen = tile.cut(pixels)
                request = Request(tiled_model(style), {IMAGE: seen, STATISTICS: shared, **mix}, STYLIZED)
                tile.place(await self._infer(request, seen.shape, np.uint8), result)
                on_tile(next(done), total)
        return painted

    async def _infer(self, request: Request, shape: tuple[int | None, ...], kind: npt.DTypeLike) -> Array:
        """The answer, which must have this type and shape (None: any)."""
        answer = await self._request(self._transport.infer, request)
        fits = len(shape) == answer.ndim and all(
            side in (None, got) for side, got in zip(shape, answer.shape, strict=True)
        )
        if answer.dtype != kind or not fits:
            raise Rejected(
                f"the model {request.model} answered {answer.dtype} {answer.shape} to uint8 "
                f"{request.inputs[IMAGE].shape}: not a style model of contract 1"
            )
        return answer

    async def _request(self, call: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """What `call` answers within the timeout; again after what passes by itself.

        All that a server is asked changes nothing there, so asking twice is safe.
        """
        deadline = time.monotonic() + self._timeout
        for wait in _pauses(self._retries):
            try:
                return await call(*arguments, deadline - time.monotonic())
            except (Unreachable, Unavailable):
                if time.monotonic() + wait >= deadline:
                    raise
            await pause(wait, aio=self._aio)
        raise AssertionError("the last pause is endless")

    async def _statistics(self, name: str) -> Statistics:
        style, _ = await self._chosen(name, self._styles)
        return await self._request(self._transport.statistics, style.model)

    async def _chosen(self, mix: Mix, styles: Mapping[str, Style]) -> tuple[Style, Weights | None]:
        """What paints a mix, of `styles` if they have it, else of what the server offers now."""
        weights = {mix: 1.0} if isinstance(mix, str) else dict(mix)
        if not weights.keys() <= styles.keys():
            styles = await self._list()
        for name in weights:
            if name in self._wrong and name not in styles:
                raise self._wrong[name]
            if name not in styles:
                left_out = f"; left out: {', '.join(self._wrong)}" if self._wrong else ""
                raise UnknownStyle(f"{self.url} has no style {name!r}; it has: {', '.join(styles) or 'none'}{left_out}")
        return resolve_style_weights([styles[name] for name in weights], list(weights.values()))


class StyleClient(_Client):
    """Styles behind a URL: `grpc[s]://host:8001`, `http[s]://host:8000` or `local:model_repository`.

    Of several servers with the same models, `grpc[s]://host:8001,host:8001`, a sequence of such URLs, or a DNS name
    with several addresses, each request goes to the next that is connected, and is sent again to another when one
    fails. A list's names are looked up once; those of a DNS name whenever a connection ends.

    For any number of threads. In a forked process, and pickled to another one, it connects anew; gRPC does not work
    after a fork of a process that has used it, which is an `InputError`. Loopback addresses are never reached through
    a proxy, others as the environment says. Use it in a `with` block, or `close` it.
    """

    _aio = False

    def styles(self) -> list[Style]:
        """What the server offers now, by name. Raises `Unreachable`, `Unavailable` or `TimedOut`.

        A model whose config cannot be used is left out, with a warning of the logger `nst_client`; if there is no
        other, what is wrong with it is raised. A model of one style is called by its own name, the styles of a model of
        several by theirs, and by model/style where another has the same name.
        """
        return run_blocking(self._listed())

    def stylize(self, pixels: Painting, style: Mix, *, on_tile: OnTile | None = None) -> Painting:
        """Paint pictures, sRGB `uint8 [H, W, 3]` or `[N, H, W, 3]`, or one of Pillow; the answer is like what is given.

        An image of Pillow of any mode is read as `open_image` reads a file: upright, in sRGB, 8 bits a channel. The
        answer is RGB, or RGBA with the opacity of the image if it has any.

        Arrays may be NumPy's, or lie on an NVIDIA GPU: what has `__cuda_array_interface__` or DLPack's methods, such
        as PyTorch's tensors and CuPy's arrays. Those need a Triton on this machine, share the GPU's memory with it,
        and are answered on the GPU.

        `style` is a name, or names with their weights, of styles that one model has: a mix. A batch is sent in
        requests that the model takes. A picture with more pixels than that goes by tiles, as `stylize_tiled` does, if
        the server has the models for it.

        Raises `InputError` for another shape, a size beyond the model's limits or a mix that cannot be,
        `UnknownStyle`, `Unreachable`, `Unavailable`, `TimedOut`, or `Rejected` with the server's own words.
        """
        return run_blocking(self._stylize(pixels, style, on_tile))

    def stylize_tiled(self, pixels: Painting, style: Mix, *, on_tile: OnTile | None = None) -> Painting:
        """`stylize` in tiles that join without a seam, of any size, also of one that the model takes whole.

        The instance normalisations have the statistics of a small copy of the picture, so the result is not quite
        that of one pass. `on_tile` is called with the number of tiles that are done, and of all. Raises `ServiceError`
        if the server has not the pair of models that `nst-export --tiled` makes, and what `stylize` raises.
        """
        return run_blocking(self._stylize(pixels, style, on_tile, tiled=True))

    def statistics(self, style: str) -> Statistics:
        """What the server has counted for the model that paints a style. Raises what `stylize` raises."""
        return run_blocking(self._statistics(style))

    def close(self) -> None:
        """End the connection, and give back shared memory."""
        run_blocking(self._transport.close())

    def __enter__(self) -> StyleClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncStyleClient(_Client):
    """`StyleClient` for asyncio: the same methods, to be awaited, by any number of tasks of one loop at once.

    It may be used in one loop after another; in two that run at once it raises `InputError`.
    Use it in an `async with` block, or await `close`.
    """

    _aio = True

    async def styles(self) -> list[Style]:
        """See `StyleClient.styles`."""
        return await self._listed()

    async def stylize(self, pixels: Painting, style: Mix, *, on_tile: OnTile | None = None) -> Painting:
        """See `StyleClient.stylize`."""
        return await self._stylize(pixels, style, on_tile)

    async def stylize_tiled(self, pixels: Painting, style: Mix, *, on_tile: OnTile | None = None) -> Painting:
        """See `StyleClient.stylize_tiled`."""
        return await self._stylize(pixels, style, on_tile, tiled=True)

    async def statistics(self, style: str) -> Statistics:
        """See `StyleClient.statistics`."""
        return await self._statistics(style)

    async def close(self) -> None:
        """See `StyleClient.close`."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncStyleClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _pauses(retries: int) -> Iterator[float]:
    """Seconds to wait after each attempt; the last is endless."""
    for attempt in range(retries):
        yield min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS) * random.uniform(0.5, 1.0)
    yield float("inf")


def _batch(picture: Any) -> Pixels:
    """`uint8 [N, H, W, 3]` of what an application gives; `CudaPixels`, which have what is used of them, on a GPU."""
    if not isinstance(picture, np.ndarray) and (found := pixels_on_gpu(picture)):
        return cast(Pixels, found)
    if not isinstance(picture, np.ndarray):
        raise InputError(
            f"pixels are a {type(picture).__name__}: give a NumPy array, an image of Pillow, or an array on a GPU"
        )
    if picture.dtype != np.uint8 or picture.ndim not in (3, 4) or picture.shape[-1] != 3 or not picture.size:
        raise InputError(f"pixels are {picture.dtype} {picture.shape}, expected uint8 [H, W, 3] or [N, H, W, 3]")
    return np.ascontiguousarray(picture if picture.ndim == 4 else picture[None])


def _like(given: Any, painted: Any) -> Any:
    """A painted batch in the form that was given."""
    if isinstance(painted, CudaPixels):
        return cuda_memory.like(given, painted)
    return painted if given.ndim == 4 else painted[0]


def _image(pixels: Pixels, alpha: Pixels | None) -> Image.Image:
    """Painted pixels as Pillow has them, under the opacity that was given."""
    image = Image.fromarray(pixels)
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    return image


def _same(weights: Weights | None, others: Weights | None) -> bool:
    if weights is None or others is None:
        return weights is others
    return np.array_equal(weights, others)


def _rows(weights: Weights | None, n: int) -> dict[str, Weights]:
    """The input of weights for `n` pictures; none for a model of one style."""
    return {} if weights is None else {STYLE_WEIGHTS: np.repeat(weights[None], n, axis=0)}
