"""Proxies of the environment, with a real proxy that records what reaches it."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

import numpy as np
import pytest

from nst_client import AsyncStyleClient, ServiceError, StyleClient, Unreachable
from nst_client.transports.triton.proxies import is_loopback, proxy_for_grpc, proxy_for_http
from nst_core.errors import InputError
from nst_core.images import Pixels

from .fake_triton import FakeTriton, serving

VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "no_proxy", "no_grpc_proxy")
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)

every_kind = pytest.mark.parametrize("aio", [False, True], ids=["blocking", "asyncio"])


class LittleProxy:
    """Sends what it gets on to `upstream`, whatever host it is asked for. `heard` are the heads of what it got."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.upstream = ("127.0.0.1", 1)
        self.refusal = b""
        self.heard: list[str] = []
        self.pairs: list[socket.socket] = []

    def run(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self.serve, args=(self.socket.accept()[0],), daemon=True).start()

    def serve(self, caller: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := caller.recv(65536)):
                caller.close()
                return
            data += more
        head, _, rest = data.partition(b"\r\n\r\n")
        self.heard.append(head.decode())
        if self.refusal:
            caller.sendall(self.refusal)
            caller.close()
            return
        server = socket.create_connection(self.upstream)
        self.pairs += [caller, server]
        if head.startswith(b"CONNECT"):
            caller.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            server.sendall(rest)
        else:
            server.sendall(data)
        threading.Thread(target=pump, args=(server, caller), daemon=True).start()
        pump(caller, server)


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy() -> Iterator[LittleProxy]:
    running = LittleProxy()
    thread = threading.Thread(target=running.run)
    thread.start()
    yield running
    running.socket.shutdown(socket.SHUT_RDWR)
    thread.join()
    for connection in (running.socket, *running.pairs):
        connection.close()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def stylize(url: str, aio: bool, **settings: object) -> Pixels:
    """The second of two images, and the server's counters on the way."""
    if not aio:
        with StyleClient(url, timeout=10.0, retries=0, **settings) as client:  # type: ignore[arg-type]
            client.stylize(PIXELS, "negative")
            return client.stylize(PIXELS, "negative")

    async def ask() -> Pixels:
        async with AsyncStyleClient(url, timeout=10.0, retries=0, **settings) as client:  # type: ignore[arg-type]
            await client.stylize(PIXELS, "negative")
            return await client.stylize(PIXELS, "negative")

    return asyncio.run(ask())


@every_kind
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_is_never_reached_through_a_proxy(
    server: str, proxy: LittleProxy, monkeypatch: pytest.MonkeyPatch, host: str, aio: bool
) -> None:
    """Inference, control and shared memory alike; the token stays here."""
    for name in VARIABLES[:4]:
        monkeypatch.setenv(name, f"http://{proxy.address}")
        monkeypatch.setenv(name.upper(), f"http://{proxy.address}")
    stylized = stylize(server.replace("127.0.0.1", host), aio, token="sesame")
    assert np.array_equal(stylized, 255 - PIXELS)
    assert proxy.heard == []


@every_kind
def test_another_host_is_reached_as_the_environment_says(
    server: str, proxy: LittleProxy, monkeypatch: pytest.MonkeyPatch, aio: bool
) -> None:
    scheme, _, host = server.partition("://")
    proxy.upstream = ("127.0.0.1", int(host.rpartition(":")[2]))
    monkeypatch.setenv("http_proxy", f"http://me:open%20sesame@{proxy.address}")
    far = f"{scheme}://far.invalid:8000"
    assert np.array_equal(stylize(far, aio), 255 - PIXELS)
    if scheme == "grpc":
        assert proxy.heard[0].startswith("CONNECT far.invalid:8000 HTTP/1")
    else:
        assert proxy.heard[0].startswith("GET http://far.invalid:8000/v2/models/stats HTTP/1.1\r\n")
    assert "Basic bWU6b3BlbiBzZXNhbWU=" in proxy.heard[0] or scheme == "grpc"
    count = len(proxy.heard)
    monkeypatch.setenv("no_proxy", "other.example,.invalid")
    with pytest.raises(Unreachable, match="start one with nst serve"):
        stylize(far, aio)
    assert len(proxy.heard) == count


@every_kind
@pytest.mark.parametrize("scheme", ["grpc", "http", "https"])
def test_a_failure_behind_a_proxy_names_it_without_its_password(
    proxy: LittleProxy, monkeypatch: pytest.MonkeyPatch, scheme: str, aio: bool
) -> None:
    proxy.refusal = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    variable = "https_proxy" if scheme != "http" else "http_proxy"
    monkeypatch.setenv(variable, f"http://me:sesame@{proxy.address}")
    with pytest.raises(ServiceError, match=f"through the proxy http://{proxy.address} of {variable}") as raised:
        stylize(f"{scheme}://far.invalid:8000", aio)
    assert "sesame" not in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert proxy.heard


@every_kind
def test_a_proxy_that_wants_a_password(proxy: LittleProxy, monkeypatch: pytest.MonkeyPatch, aio: bool) -> None:
    proxy.refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", f"http://{proxy.address}")
        with pytest.raises(ServiceError, match="asks for a user and a password"):
            stylize(f"{scheme}://far.invalid:8000", aio)


@every_kind
def test_nobody_at_the_proxy(monkeypatch: pytest.MonkeyPatch, aio: bool) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
    monkeypatch.setenv("http_proxy", address)
    for scheme in ("grpc", "http"):
        words = f"no server answers at {scheme}://far.invalid:8000 through the proxy http://{address} of http_proxy"
        with pytest.raises(Unreachable, match=f"{words}; add it to no_proxy"):
            stylize(f"{scheme}://far.invalid:8000", aio)


def test_several_servers_are_reached_without_a_proxy(proxy: LittleProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("grpc_proxy", f"http://{proxy.address}")
    with (
        serving(FakeTriton()) as first,
        serving(FakeTriton()) as second,
        StyleClient([first.url, second.url]) as client,
    ):
        for _ in range(4):
            client.stylize(PIXELS, "negative")
    assert proxy.heard == []


def test_proxies_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://me:sesame@127.0.0.1:1080")
    for url in ("grpc://far.invalid:8001", "https://far.invalid:8000"):
        with (
            StyleClient(url) as client,
            pytest.raises(InputError, match="https_proxy is not the URL of an HTTP") as raised,
        ):
            client.styles()
        assert "sesame" not in str(raised.value)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("a.localhost", True),
        ("127.0.0.9", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", True),
        ("localhost.example", False),
        ("127.example", False),
        ("10.0.0.1", False),
    ],
)
def test_what_is_this_machine(host: str, own: bool) -> None:
    assert is_loopback(host) is own


@pytest.mark.parametrize(
    ("listed", "host", "through"),
    [
        ("", "a.example", True),
        ("*", "a.example", False),
        ("a.example", "b.a.example", False),
        (".a.example", "b.a.example", False),
        ("a.example:8001", "a.example", False),
        ("a.example:8002", "a.example", True),
        ("10.0.0.0/8, b", "10.1.2.3", False),
        ("10.0.0.0/8", "11.1.2.3", True),
        ("fd00::/8", "fd00::7", False),
    ],
)
def test_hosts_that_no_proxy_lists(monkeypatch: pytest.MonkeyPatch, listed: str, host: str, through: bool) -> None:
    monkeypatch.setenv("no_proxy", listed)
    monkeypatch.setenv("http_proxy", "proxy:3128")
    for found in (proxy_for_http("http", host, 8001), proxy_for_grpc(host, 8001)):
        assert (str(found) if found else None) == ("the proxy http://proxy:3128 of http_proxy" if through else None)


def test_which_variable_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://{name.lower()}-{name[0]}:1")
    assert getattr(proxy_for_grpc("far", 1), "variable", "") == "https_proxy"
    monkeypatch.setenv("grpc_proxy", "")
    assert proxy_for_grpc("far", 1) is None
    assert getattr(proxy_for_http("https", "far", 1), "variable", "") == "https_proxy"
    monkeypatch.delenv("https_proxy")
    assert getattr(proxy_for_http("https", "far", 1), "variable", "") == "HTTPS_PROXY"
    monkeypatch.delenv("http_proxy")
    monkeypatch.setenv("HTTP_PROXY", "evil:1")
    assert proxy_for_http("http", "far", 1) is not None
    monkeypatch.setenv("REQUEST_METHOD", "GET")  # the header "Proxy" of a CGI script's caller
    assert proxy_for_http("http", "far", 1) is None
