"""Ways to a model: Triton over gRPC or HTTP, ONNX Runtime in this process, or a function in a test.

A transport lists models, tells what a model's config says, and runs a model. Each turns its library's
errors into ours. The methods are coroutines, so that what the client does with them is written once; those of
a blocking transport never suspend.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nst_client.transports.statistics import Statistics
from nst_core.errors import InputError

LARGEST_PORT = 65535

Array = npt.NDArray[Any]
Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModelConfig:
    """What a model's config says: its `parameters`, and how many pictures a request may hold (0: any number)."""

    parameters: Mapping[str, str] = field(default_factory=dict)
    max_batch: int = 0


@dataclass(frozen=True, eq=False)
class Request:
    """An inference: named arrays for a model, and the name of the output that is wanted."""

    model: str
    inputs: Mapping[str, Array]
    output: str


class Transport(Protocol):
    """What a client needs of a server. `seconds` is how long an answer may take.

    Raises children of `ServiceError`: `Unreachable` and `Unavailable` for what may be asked again.
    """

    address: str

    async def models(self, seconds: float) -> list[str]:
        """Names of the models that are ready."""

    async def config(self, model: str, seconds: float) -> ModelConfig:
        """What a model's config says."""

    async def infer(self, request: Request, seconds: float) -> Array:
        """The output that the request wants."""

    async def statistics(self, model: str, seconds: float) -> Statistics:
        """What the server has counted for a model."""

    async def close(self) -> None:
        """Give back what is held."""


def connect(
    url: str | Sequence[str],
    *,
    timeout: float = 60.0,
    token: str | None = None,
    ca: Path | None = None,
    shared_memory: bool | None = None,
    aio: bool = False,
) -> Transport:
    """The transport of `grpc[s]://host:port[,host:port]`, `http[s]://host:port` or `local:FOLDER`; see `StyleClient`.

    HTTP may have a path behind the port, for a reverse proxy; with TLS the port is 443 by default. A sequence is of
    gRPC URLs of one scheme, of servers with the same models. `aio` makes one whose coroutines suspend, for asyncio.
    Raises `InputError` for any other URL, or a setting that it cannot have. Nothing is sent yet.
    """
    if not isinstance(url, str):
        url = _together(url)
    if url.startswith("local:"):
        from nst_client.transports.local import LocalTransport

        return LocalTransport(Path(url.removeprefix("local:")), aio=aio)
    scheme, separator, rest = url.partition("://")
    # gRPC's own way to say which DNS server knows a name: dns://server/name:port.
    resolver = found[0] if scheme.startswith("grpc") and (found := _RESOLVER.match(rest)) else ""
    host, slash, path = rest.removeprefix(resolver).partition("/")
    host, path = resolver + host, (slash + path).rstrip("/")
    if not (separator and host and scheme in ("grpc", "grpcs", "http", "https")):
        raise InputError(
            f"{_shown(url)} is no address: use grpc://host:8001, grpcs://host:8001, http://host:8000, "
            "https://host:8000 or local:model_repository"
        )
    if "," in host and (not scheme.startswith("grpc") or not all(host.split(","))):
        raise InputError(f"{_shown(url)}: several servers are for gRPC, as grpc://host:8001,host:8001 or grpcs://")
    if path and (scheme.startswith("grpc") or set(path) & set("?# ")):
        raise InputError(f"{_shown(url)}: {path} does not belong behind the port: use {scheme}://{host}")
    try:
        servers = server_addresses(host)
    except InputError as error:
        raise InputError(f"{_shown(url)}: {error}") from None
    if scheme == "grpc" and not all(server.port for server in servers):
        raise InputError(f"{_shown(url)} has no port: use grpc://host:8001")
    from nst_client.transports.triton.http import HttpTransport
    from nst_client.transports.triton.transport import GrpcTransport, TritonSettings

    settings = TritonSettings(host, scheme.endswith("s"), timeout, token, ca, shared_memory, aio, path)
    return GrpcTransport(settings) if scheme.startswith("grpc") else HttpTransport(settings)


@dataclass(frozen=True)
class ServerAddress:
    """A name or an address, without brackets, and a port; None for the scheme's own."""

    host: str
    port: int | None


def server_addresses(hosts: str) -> list[ServerAddress]:
    """Those of `host:port[,host:port]`. Raises `InputError` that says what is wrong with one."""
    return [_server_address(_RESOLVER.sub("", text)) for text in hosts.split(",")]


def _server_address(text: str) -> ServerAddress:
    if "@" in text:
        raise InputError("an address takes no user and password; a server's token goes in NST_TOKEN or --token-file")
    if text.count(":") > 1 and not text.startswith("["):
        raise InputError("write an IPv6 address in brackets, as [::1]:8001")
    found = _SERVER.fullmatch(text)
    if found is None or not text.isprintable():
        raise InputError(f"{text!r} is no host")
    number = found["port"]
    if number is not None and not (re.fullmatch("[0-9]{1,5}", number) and 0 < int(number) <= LARGEST_PORT):
        raise InputError(f"{number!r} is no port: give a number from 1 to {LARGEST_PORT}")
    return ServerAddress(found["six"] or found["name"], None if number is None else int(number))


_RESOLVER = re.compile("dns:(//[^/,]*/)?")

_SERVER = re.compile(r"""(?:\[(?P<six>[^\[\]/?#\s]+)\]|(?P<name>[^\[\]:/?#\\<>"'%\s]+))(?::(?P<port>.*))?""")


def _shown(url: str) -> str:
    """An address for a message, without a password."""
    scheme, separator, rest = url.rpartition("://")
    return repr(f"{scheme}{separator}{rest.rpartition('@')[2]}")


def _together(urls: Sequence[str]) -> str:
    """One URL of several servers."""
    schemes = {url.partition("://")[0] for url in urls}
    if len(urls) == 1:
        return urls[0]
    if len(schemes) != 1 or not schemes <= {"grpc", "grpcs"}:
        raise InputError(f"{', '.join(urls) or 'no URL'}: several servers are for gRPC, all grpc:// or all grpcs://")
    return f"{schemes.pop()}://{','.join(url.partition('://')[2].rstrip('/') for url in urls)}"
