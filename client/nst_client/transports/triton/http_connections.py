"""Reusable HTTP connections, blocking and for asyncio, direct or through a proxy; each exchange has a timeout.

Errors are the libraries' own: `OSError`, `HTTPException`, and aiohttp's `ClientError`.
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

MAX_BODY_BYTES = 2**32
"""Maximum length of an answer; none of Triton's is longer."""

CHUNK_BYTES = 2**20
"""Bytes to send between two checks of the deadline."""

MAX_IDLE_CONNECTIONS = 8
"""Maximum connections to keep for the next request; more threads than that open new ones."""


@dataclass(frozen=True)
class Origin:
    """A server's location, and how to reach it. `host` is a name or an address without brackets."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    proxy: Proxy | None = None

    @property
    def authority(self) -> str:
        """Host and port as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL of the root, without a slash at the end."""
        return f"{'http' if self.tls is None else 'https'}://{self.authority}"

    @property
    def proxy_headers(self) -> Mapping[str, str]:
        """Headers for the proxy in each request; a tunnel gets them once, when it is opened."""
        return {} if self.proxy is None or self.tls else self.proxy.headers


@dataclass(frozen=True)
class HttpRequest:
    """A request. `path` begins with a slash; the parts of `body` are sent in order."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Sequence[bytes | memoryview] = ()


@dataclass(frozen=True)
class HttpResponse:
    """An answer. The names of `headers` are in lower case; the caller owns the body."""

    status: int
    headers: Mapping[str, str]
    body: memoryview


class Connections(Protocol):
    """Connections to an origin. The results of `exchange` and `close` are awaitable for asyncio."""

    def exchange(self, request: HttpRequest, seconds: float) -> Any:
        """Send a request and return the `HttpResponse`. Raises `TimeoutError` after `seconds`."""

    def close(self) -> Any:
        """Close all connections."""


class BlockingConnections:
    """`Connections` for any number of threads: each takes an idle connection or opens a new one."""

    def __init__(self, origin: Origin) -> None:
        """Set up without connecting; the first exchange opens a connection."""
        self._origin = origin
        self._idle: list[HTTPConnection] = []

    def exchange(self, request: HttpRequest, seconds: float) -> HttpResponse:
        """See `Connections`."""
        deadline = time.monotonic() + seconds
        if (connection := self._idle_connection()) is not None:
            # The server may just have closed it. Requests change nothing there, so sending one again is safe.
            with suppress(ConnectionError, HTTPException):
                return self._exchange_on(connection, request, deadline)
        return self._exchange_on(self._new_connection(), request, deadline)

    def close(self) -> None:
        """See `Connections`."""
        while self._idle:
            with suppress(IndexError):  # another thread was faster
                self._idle.pop().close()

    def _idle_connection(self) -> HTTPConnection | None:
        """Return an idle connection that is still open."""
        while self._idle:
            with suppress(IndexError):
                connection = self._idle.pop()
                if _is_quiet(connection):
                    return connection
                connection.close()
        return None

    def _exchange_on(self, connection: HTTPConnection, request: HttpRequest, deadline: float) -> HttpResponse:
        origin = self._origin
        # A proxy gets the whole URL, unless it opens a tunnel.
        path = request.path if origin.proxy is None or origin.tls else origin.url + request.path
        length = str(sum(len(part) for part in request.body))
        headers = {**request.headers, **origin.proxy_headers, "Content-Length": length}
        try:
            _set_deadline(connection, deadline)
            with suppress(
                BrokenPipeError
            ):  # a server may refuse a large body before it has read it; its answer says why
                connection.request(request.method, path, request.body, headers)
            response = connection.getresponse()
            headers_of_answer = {name.lower(): value for name, value in response.headers.items()}
            answer = HttpResponse(response.status, headers_of_answer, _body(response))
        except BaseException:
            connection.close()
            raise
        if response.will_close or len(self._idle) >= MAX_IDLE_CONNECTIONS:
            connection.close()
        else:
            self._idle.append(connection)
        return answer

    def _new_connection(self) -> HTTPConnection:
        origin, proxy = self._origin, self._origin.proxy
        host, port = (proxy.host, proxy.port) if proxy else (origin.host, origin.port)
        if origin.tls is None:
            return _PlainConnection(host, port)
        connection = _TlsConnection(host, port, context=origin.tls)
        if proxy:
            connection.set_tunnel(origin.host, origin.port, proxy.headers)
        return connection


class AsyncConnections:
    """`Connections` for the running asyncio loop."""

    def __init__(self, origin: Origin) -> None:
        """Set up without connecting; the first exchange opens a connection."""
        import aiohttp

        self._origin = origin
        connector = aiohttp.TCPConnector(ssl=origin.tls or True)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
        )

    async def exchange(self, request: HttpRequest, seconds: float) -> HttpResponse:
        """See `Connections`."""
        from yarl import URL

        proxy = self._origin.proxy
        async with asyncio.timeout(max(seconds, 0.001)):
            response = await self._session.request(
                request.method,
                URL(self._origin.url + request.path, encoded=True),
                headers={**request.headers, **self._origin.proxy_headers},
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
        """Close the connections of an event loop that is closed."""
        with suppress(Exception):
            run_blocking(self._session.close())


class _TimedSocket:
    """A socket for http.client whose operations share one `deadline` instead of a timeout each."""

    def __init__(self, plain: socket.socket) -> None:
        self.plain, self.deadline = plain, 0.0
        self.readers, self.closing = 0, False

    def limit_time(self) -> None:
        """Limit the next operation to the time that is left. Raises `TimeoutError`."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.plain.settimeout(left)

    def sendall(self, data: Any) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            self.limit_time()
            rest = rest[self.plain.send(rest[:CHUNK_BYTES]) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return the file from which http.client reads answers; like a socket's file, it may outlive `close`."""
        self.readers += 1
        return io.BufferedReader(_Reader(self), 64 * 1024)

    def released(self) -> None:
        """Count a closed reader; close the socket with the last."""
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
        """Close the connection of a client that nobody closed, without a warning."""
        self.plain.close()


class _Reader(io.RawIOBase):
    """The bytes that a socket receives."""

    def __init__(self, timed: _TimedSocket) -> None:
        super().__init__()
        self._timed = timed

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        self._timed.limit_time()
        return self._timed.plain.recv_into(target)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._timed.released()


class _PlainConnection(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        self.sock: Any = _TimedSocket(self.sock)


class _TlsConnection(HTTPSConnection):
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
    """Return whether an idle connection is open; data without a request means that the server closed it."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection.sock, selectors.EVENT_READ)
        return not selector.select(0)


def _body(response: HTTPResponse) -> memoryview:
    """Read the whole body into reused memory. Raises `IncompleteRead` if the connection breaks."""
    length = response.length
    if length is None:  # in chunks, or until the connection ends
        data = response.read()
        if not data and not response.chunked:
            raise IncompleteRead(data)
        return memoryview(data)
    if length > MAX_BODY_BYTES:
        raise HTTPException(f"a body of {length} bytes")
    body = memoryview(cast(Any, buffers.empty((length,), np.uint8)))
    filled = 0
    while filled < length:
        got = response.readinto(body[filled:])
        if not got:
            raise IncompleteRead(b"", length - filled)
        filled += got
    response.read()  # reads nothing, but ends the response and frees the connection
    return body
