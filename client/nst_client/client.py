"""`StyleClient` and `AsyncStyleClient`: stylize images in the styles of a server."""

from __future__ import annotations

from types import TracebackType

from nst_client.base_client import BaseClient, ImageOrArray, OnTile, StyleChoice
from nst_client.styles import Style
from nst_client.transports.coroutines import run_blocking
from nst_client.transports.statistics import Statistics


class StyleClient(BaseClient):
    """Stylizes images in the styles of a server or a model repository, given by its URL.

        with StyleClient("grpc://127.0.0.1:8001") as client:
            stylized = client.stylize(pixels, "starry-night-fast")

    The URL is `grpc[s]://host:8001`, `http[s]://host:8000`, or `local:model_repository` for models that run in this
    process. Several servers with the same models are `grpc[s]://host:8001,host:8001`, a sequence of such URLs, or a
    DNS name with several addresses. Each request goes to the next connected server, and is retried on another if one
    fails. The names in a list are resolved once, a single DNS name whenever a connection ends.

    Any number of threads may share a client. A forked or unpickled copy opens its own connection; gRPC does not work
    in a fork of a process that has used it, and raises `InputError` there. Connections to other hosts use the
    environment's proxy. Use the client in a `with` block, or call `close`.
    """

    _aio = False

    def styles(self) -> list[Style]:
        """Return the styles that the server offers now, sorted by name.

        A model with one style gives it the model's name. The styles of a model with several keep their own names, or
        are called model/style where another style has the same name. A model whose config cannot be used is skipped
        with a warning of the logger `nst_client`; if there is no other model, its error is raised.

        Raises:
            Unreachable, Unavailable, TimedOut: The server cannot be asked.
            Untrusted: The server's certificate is not trusted.
            ServiceError: No model has a config that can be used.
        """
        return run_blocking(self._sorted_styles())

    def stylize(self, content: ImageOrArray, style: StyleChoice, *, on_tile: OnTile | None = None) -> ImageOrArray:
        """Stylize an image or a batch of images of one size.

        A batch is split into requests that the model accepts. An image larger than the model accepts is stylized in
        tiles, as `stylize_tiled` does, if the server has the models for it.

        Args:
            content: sRGB pixels `uint8 [H, W, 3]` or `[N, H, W, 3]`, or a Pillow image of any mode. An array may be
                NumPy's, or any object on an NVIDIA GPU with `__cuda_array_interface__` or DLPack's methods, such as a
                PyTorch tensor or a CuPy array; that needs a Triton on this machine, with which it shares GPU memory.
            style: A style's name, or a mapping of names to weights, which interpolates styles of one model. Weights
                are at least 0 and need not sum to 1.
            on_tile: Called with the number of finished tiles and of all tiles, if the image is stylized in tiles.

        Returns:
            The same kind of object, of the same shape. Pixels on a GPU stay there. A Pillow image is upright, in
                sRGB, and RGB, or RGBA with the opacity of `content`.

        Raises:
            InputError: The type, the shape, the size or the weights are invalid.
            UnknownStyle: The server does not have the style.
            Unreachable, Unavailable, TimedOut: The server does not answer, after all retries.
            Rejected: The server answers with an error.
        """
        return run_blocking(self._stylize(content, style, on_tile))

    def stylize_tiled(
        self, content: ImageOrArray, style: StyleChoice, *, on_tile: OnTile | None = None
    ) -> ImageOrArray:
        """Stylize in tiles without seams, whatever the size of the image.

        The instance normalisation uses the statistics of a small copy of the image (Chen et al. 2022), so the result
        differs slightly from that of one pass. Arguments and result are those of `stylize`, except that pixels on a
        GPU are not accepted.

        Raises:
            ServiceError: The server lacks the two models that `nst export --tiled` adds.
            InputError, UnknownStyle, Unreachable, Unavailable, TimedOut, Rejected: As in `stylize`.
        """
        return run_blocking(self._stylize(content, style, on_tile, tiled=True))

    def statistics(self, style: str) -> Statistics:
        """Return the server's counters for a style's model.

        Raises:
            ServiceError: The client has a `local:` URL; only servers count.
            UnknownStyle, Unreachable, Unavailable, TimedOut, Rejected: As in `stylize`.
        """
        return run_blocking(self._statistics(style))

    def close(self) -> None:
        """Close the connection and free shared memory."""
        run_blocking(self._transport.close())

    def __enter__(self) -> StyleClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncStyleClient(BaseClient):
    """`StyleClient` for asyncio: the same methods, as coroutines.

        async with AsyncStyleClient("grpc://127.0.0.1:8001") as client:
            stylized = await client.stylize(pixels, "starry-night-fast")

    Any number of tasks of one event loop may share a client. It can move to another loop after the first has ended;
    in two running loops it raises `InputError`. Use it in an `async with` block, or await `close`.
    """

    _aio = True

    async def styles(self) -> list[Style]:
        """Return the styles that the server offers now, sorted by name; see `StyleClient.styles`."""
        return await self._sorted_styles()

    async def stylize(
        self, content: ImageOrArray, style: StyleChoice, *, on_tile: OnTile | None = None
    ) -> ImageOrArray:
        """Stylize an image or a batch of images of one size; see `StyleClient.stylize`."""
        return await self._stylize(content, style, on_tile)

    async def stylize_tiled(
        self, content: ImageOrArray, style: StyleChoice, *, on_tile: OnTile | None = None
    ) -> ImageOrArray:
        """Stylize in tiles without seams; see `StyleClient.stylize_tiled`."""
        return await self._stylize(content, style, on_tile, tiled=True)

    async def statistics(self, style: str) -> Statistics:
        """Return the server's counters for a style's model; see `StyleClient.statistics`."""
        return await self._statistics(style)

    async def close(self) -> None:
        """Close the connection and free shared memory; see `StyleClient.close`."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncStyleClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
