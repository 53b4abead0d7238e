"""`StyleClient` and `AsyncStyleClient`: content images to stylized images, by the name of a style."""

from __future__ import annotations

from types import TracebackType

from nst_client.base_client import BaseClient, ImageOrArray, OnTile, StyleChoice
from nst_client.styles import Style
from nst_client.transports.coroutines import run_blocking
from nst_client.transports.statistics import Statistics


class StyleClient(BaseClient):
    """Styles behind a URL: `grpc[s]://host:8001`, `http[s]://host:8000` or `local:model_repository`.

    Several servers with the same models are given as `grpc[s]://host:8001,host:8001`, a sequence of such URLs, or a
    DNS name with several addresses. Each request goes to the next server that is connected, and is retried at another
    when one fails. The names of a list are resolved once, a DNS name whenever a connection ends.

    A client may be used by any number of threads. It connects anew in a forked process, and when it is pickled to
    another one; gRPC does not work after a fork of a process that has used it, which is an `InputError`. Hosts
    other than this machine are reached through the environment's proxy. Use a client in a `with` block, or `close` it.
    """

    _aio = False

    def styles(self) -> list[Style]:
        """What the server offers now, sorted by name. Raises `Unreachable`, `Unavailable` or `TimedOut`.

        A model whose config cannot be used is left out, with a warning of the logger `nst_client`; if there is no
        other model, the error is raised. A model of one style has its own name, the styles of a model of several
        have theirs, or model/style where another has the same name.
        """
        return run_blocking(self._sorted_styles())

    def stylize(self, content: ImageOrArray, style: StyleChoice, *, on_tile: OnTile | None = None) -> ImageOrArray:
        """Stylize sRGB `uint8 [H, W, 3]` or `[N, H, W, 3]`, or an image of Pillow; the result is of the same kind.

        An image of Pillow of any mode is read as `open_image` reads a file: upright, in sRGB, 8 bits a channel. The
        result is RGB, or RGBA with the image's own opacity if it has any.

        An array may be NumPy's, or lie on an NVIDIA GPU: any object with `__cuda_array_interface__` or DLPack's
        methods, such as PyTorch's tensors and CuPy's arrays. A GPU's array needs a Triton on this machine, which
        shares the GPU's memory, and the result stays on the GPU.

        `style` is a name, or weights by name of styles of one model, which are interpolated. A batch is sent in
        requests that the model takes. A larger image is stylized in tiles, as `stylize_tiled` does, if the server has
        the models for it.

        Raises `InputError` for another shape, a size beyond the model's limits or invalid weights, `UnknownStyle`,
        `Unreachable`, `Unavailable`, `TimedOut`, or `Rejected` with the server's message.
        """
        return run_blocking(self._stylize(content, style, on_tile))

    def stylize_tiled(
        self, content: ImageOrArray, style: StyleChoice, *, on_tile: OnTile | None = None
    ) -> ImageOrArray:
        """`stylize` in tiles without seams, for images of any size, also those that the model takes whole.

        The instance normalisations use the statistics of a small copy of the image, so the result differs slightly
        from that of one pass. `on_tile` is called with the number of tiles that are done, and of all. Raises what
        `stylize` raises, and `ServiceError` if the server lacks the pair of models that `nst-export --tiled` makes.
        """
        return run_blocking(self._stylize(content, style, on_tile, tiled=True))

    def statistics(self, style: str) -> Statistics:
        """The server's counters of the model of a style. Raises what `stylize` raises."""
        return run_blocking(self._statistics(style))

    def close(self) -> None:
        """Close the connection, and free shared memory."""
        run_blocking(self._transport.close())

    def __enter__(self) -> StyleClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncStyleClient(BaseClient):
    """`StyleClient` for asyncio: the same methods, awaited, by any number of tasks of one loop at once.

    It may be used in one loop after another; in two that run at once it raises `InputError`.
    Use it in an `async with` block, or await `close`.
    """

    _aio = True

    async def styles(self) -> list[Style]:
        """See `StyleClient.styles`."""
        return await self._sorted_styles()

    async def stylize(
        self, content: ImageOrArray, style: StyleChoice, *, on_tile: OnTile | None = None
    ) -> ImageOrArray:
        """See `StyleClient.stylize`."""
        return await self._stylize(content, style, on_tile)

    async def stylize_tiled(
        self, content: ImageOrArray, style: StyleChoice, *, on_tile: OnTile | None = None
    ) -> ImageOrArray:
        """See `StyleClient.stylize_tiled`."""
        return await self._stylize(content, style, on_tile, tiled=True)

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
