"""HTTP connections that are kept and used again, blocking and for asyncio; each exchange ends within its time.

They speak to a server itself or through a proxy. Errors are the libraries' own: `OSError`, `HTTPException`, and
aiohttp's `ClientError`.
"""

from __future__ import annotations

import asyncio
import io
import selectors
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import Any, Protocol, cast

import numpy as np

from nst_client.transports import buffers
from nst_client.transports.coroutines import run_blocking
from nst_client.transports.triton.proxies import Proxy

LARGEST_BODY = 2**32
"""Bytes; what says it is longer is not an answer of Triton."""

PART = 2**20
"""Bytes that are sent at a time: between two parts there is a look at the clock."""

KEPT = 8
"""Connections that wait for the next request, of as many threads as use a client at once."""


@dataclass(frozen=True)
class Origin:
    """Where a server is, and the way to it. `host` is a name or an address, without brackets."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    proxy: Proxy | None = None

    @property
    def authority(self) -> str:
        """Host and port as a URL has them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL of its root, without a slash."""
        return f"{'http' if self.tls is None else 'https'}://{self.authority}"

    @property
    def proxy_headers(self) -> Mapping[str, str]:
        """What a proxy wants of each request; of a tunnel it wants it once."""
        return {} if self.proxy is None or self.tls else self.proxy.headers


@dataclass(frozen=True)
class HttpRequest:
    """`path` begins with a slash. The parts of `body` are sent one after the other."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Sequence[bytes | memoryview] = ()


@dataclass(frozen=True)
class HttpResponse:
    """The names of `headers` are in lower case. The body is the caller's own."""

    status: int
    headers: Mapping[str, str]
    body: memoryview


class Connections(Protocol):
    """Connections to one target. `exchange` is awaited if it must be; so is `close`."""

    def exchange(self, request: HttpRequest, seconds: float) -> Any:
        """The `HttpResponse` to a request. Raises `TimeoutError` after so many seconds."""

    def close(self) -> Any:
        """End all connections."""


class BlockingConnections:
    """`Connections` for any number of threads: each takes one that waits, or makes its own."""

    def __init__(self, target: Origin) -> None:
        """Nothing is connected yet."""
        self._target = target
        self._idle: list[HTTPConnection] = []

    def exchange(self, request: HttpRequest, seconds: float) -> HttpResponse:
        """See `Connections`."""
        deadline = time.monotonic() + seconds
        if (connection := self._waiting()) is not None:
            # The server may just have ended what it kept. Nothing that is asked changes anything, so it is asked again.
            with suppress(ConnectionError, HTTPException):
                return self._exchanged(connection, request, deadline)
        return self._exchanged(self._connection(), request, deadline)

    def close(self) -> None:
        """See `Connections`."""
        while self._idle:
            with suppress(IndexError):  # another thread was faster
                self._idle.pop().close()

    def _waiting(self) -> HTTPConnection | None:
        """A connection that is still open."""
        while self._idle:
            with suppress(IndexError):
                connection = self._idle.pop()
                if _is_quiet(connection):
                    return connection
                connection.close()
        return None

    def _exchanged(self, connection: HTTPConnection, request: HttpRequest, deadline: float) -> HttpResponse:
        target = self._target
        # A proxy is asked for the whole URL, unless it makes a tunnel.
        path = request.path if target.proxy is None or target.tls else target.url + request.path
        length = str(sum(len(part) for part in request.body))
        headers = {**request.headers, **target.proxy_headers, "Content-Length": length}
        try:
            _set_deadline(connection, deadline)
            with suppress(BrokenPipeError):  # a server may refuse a large body before it has read it, and say why
                connection.request(request.method, path, request.body, headers)
            response = connection.getresponse()
            told = {name.lower(): value for name, value in response.headers.items()}
            answer = HttpResponse(response.status, told, _body(response))
        except BaseException:
            connection.close()
            raise
        if response.will_close or len(self._idle) >= KEPT:
            connection.close()
        else:
            self._idle.append(connection)
        return answer

    def _connection(self) -> HTTPConnection:
        target, proxy = self._target, self._target.proxy
        host, port = (proxy.host, proxy.port) if proxy else (target.host, target.port)
        if target.tls is None:
            return _Plain(host, port)
        connection = _Tls(host, port, context=target.tls)
        if proxy:
            connection.set_tunnel(target.host, target.port, proxy.headers)
        return connection


class AsyncConnections:
    """`Connections` for asyncio. They belong to the loop that runs."""

    def __init__(self, target: Origin) -> None:
        """Nothing is connected yet."""
        import aiohttp

        self._target = target
        connector = aiohttp.TCPConnector(ssl=target.tls or True)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
        )

    async def exchange(self, request: HttpRequest, seconds: float) -> HttpResponse:
        """See `Connections`."""
        from yarl import URL

        proxy = self._target.proxy
        async with asyncio.timeout(max(seconds, 0.001)):
            response = await self._session.request(
                request.method,
                URL(self._target.url + request.path, encoded=True),
                headers={**request.headers, **self._target.proxy_headers},
                # aiohttp warns that bytes of more than 1 MiB may hold up the loop.
                data=io.BytesIO(b"".join(request.body)) if request.body else None,
                allow_redirects=False,  # another host must not get the token
                proxy=proxy.url if proxy else None,
                proxy_headers=proxy.headers if proxy else None,
            )
            async with response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                return HttpResponse(response.status, headers, memoryview(await response.read()))

    async def close(self) -> None:
        """See `Connections`."""
        await self._session.close()

    def abandon(self) -> None:
        """End where the loop is closed."""
        with suppress(Exception):
            run_blocking(self._session.close())


class _TimedSocket:
    """A socket for http.client whose steps end at `deadline`, all together and not each for itself."""

    def __init__(self, plain: socket.socket) -> None:
        self.plain, self.deadline = plain, 0.0
        self.readers, self.closing = 0, False

    def wait(self) -> None:
        """Give the next step the time that is left. Raises `TimeoutError`."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.plain.settimeout(left)

    def sendall(self, data: Any) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            self.wait()
            rest = rest[self.plain.send(rest[:PART]) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        """What http.client reads answers from. It closes its socket while an answer is still read, as sockets allow."""
        self.readers += 1
        return io.BufferedReader(_Reader(self), 64 * 1024)

    def released(self) -> None:
        """A reader has ended."""
        self.readers -= 1
        if self.closing and not self.readers:
            self.plain.close()

    def fileno(self) -> int:
        return self.plain.fileno()

    def close(self) -> None:
        self.closing = True
        if not self.readers:
            self.plain.close()

    def __del__(self) -> None:
        """Of a client that nobody closes the connections end as it does, without a warning."""
        self.plain.close()


class _Reader(io.RawIOBase):
    """What a socket receives."""

    def __init__(self, timed: _TimedSocket) -> None:
        super().__init__()
        self._timed = timed

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        self._timed.wait()
        return self._timed.plain.recv_into(target)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._timed.released()


class _Plain(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        self.sock: Any = _TimedSocket(self.sock)


class _Tls(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        self.sock: Any = _TimedSocket(self.sock)


def _set_deadline(connection: HTTPConnection, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    if connection.sock is None:
        connection.timeout = left
        connection.connect()
    cast(_TimedSocket, connection.sock).deadline = deadline


def _is_quiet(connection: HTTPConnection) -> bool:
    """Whether an idle connection is open: one that has something to say has been ended, or says what nobody asked."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection.sock, selectors.EVENT_READ)
        return not selector.select(0)


def _body(response: HTTPResponse) -> memoryview:
    """All of it, in memory that results before it have left. Raises `IncompleteRead` where the connection was cut."""
    length = response.length
    if length is None:  # in chunks, or as long as the connection lasts
        data = response.read()
        if not data and not response.chunked:
            raise IncompleteRead(data)
        return memoryview(data)
    if length > LARGEST_BODY:
        raise HTTPException(f"a body of {length} bytes")
    body = memoryview(cast(Any, buffers.empty((length,), np.uint8)))
    filled = 0
    while filled < length:
        got = response.readinto(body[filled:])
        if not got:
            raise IncompleteRead(b"", length - filled)
        filled += got
    response.read()  # nothing is left, which ends the response and frees the connection
    return body
