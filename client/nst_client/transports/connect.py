"""The transport that a URL selects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nst_client.transports.base import Transport
from nst_client.transports.triton.addresses import RESOLVER, server_addresses
from nst_core.errors import InputError


def connect(
    url: str | Sequence[str],
    *,
    timeout: float = 60.0,
    token: str | None = None,
    ca: Path | None = None,
    shared_memory: bool | None = None,
    aio: bool = False,
) -> Transport:
    """Create the transport for a URL; see `StyleClient` for the URLs and the settings.

    An HTTP URL may have a path, for a reverse proxy; with TLS the default port is 443. A sequence holds gRPC URLs of
    one scheme, of servers with the same models. With `aio` the transport's coroutines suspend, for asyncio. The
    transport connects with its first call. Raises `InputError` for any other URL or an invalid setting.
    """
    if not isinstance(url, str):
        url = _joined(url)
    if url.startswith("local:"):
        from nst_client.transports.local import LocalTransport

        return LocalTransport(Path(url.removeprefix("local:")), aio=aio)
    scheme, host, path = _parsed(url)
    from nst_client.transports.triton.settings import TritonSettings

    settings = TritonSettings(host, scheme.endswith("s"), timeout, token, ca, shared_memory, aio, path)
    if scheme.startswith("grpc"):
        from nst_client.transports.triton.grpc import GrpcTransport

        return GrpcTransport(settings)
    from nst_client.transports.triton.http import HttpTransport

    return HttpTransport(settings)


def _parsed(url: str) -> tuple[str, str, str]:
    """Split a server's URL into scheme, hosts with ports, and path. Raises `InputError`."""
    scheme, separator, rest = url.partition("://")
    resolver = found[0] if scheme.startswith("grpc") and (found := RESOLVER.match(rest)) else ""
    host, slash, path = rest.removeprefix(resolver).partition("/")
    host, path = resolver + host, (slash + path).rstrip("/")
    if not (separator and host and scheme in ("grpc", "grpcs", "http", "https")):
        raise InputError(
            f"{_without_password(url)} is not a server's URL; use grpc://host:8001 or grpcs://, "
            "http://host:8000 or https://, or local:model_repository"
        )
    if "," in host and (not scheme.startswith("grpc") or not all(host.split(","))):
        raise InputError(
            f"{_without_password(url)} lists several servers, which only gRPC supports; "
            "use grpc://host:8001,host:8001 or grpcs://"
        )
    if path and (scheme.startswith("grpc") or set(path) & set("?# ")):
        raise InputError(f"{_without_password(url)} has the invalid path {path}; use {scheme}://{host}")
    try:
        servers = server_addresses(host)
    except InputError as error:
        raise InputError(f"{_without_password(url)}: {error}") from None
    if scheme == "grpc" and not all(server.port for server in servers):
        raise InputError(f"{_without_password(url)} has no port; use grpc://host:8001")
    return scheme, host, path


def _without_password(url: str) -> str:
    """Return a URL without its password, for a message."""
    scheme, separator, rest = url.rpartition("://")
    return repr(f"{scheme}{separator}{rest.rpartition('@')[2]}")


def _joined(urls: Sequence[str]) -> str:
    """Join the URLs of several servers."""
    schemes = {url.partition("://")[0] for url in urls}
    if len(urls) == 1:
        return urls[0]
    if len(schemes) != 1 or not schemes <= {"grpc", "grpcs"}:
        raise InputError(
            f"several servers are {', '.join(urls) or 'empty'}; give gRPC URLs, all grpc:// or all grpcs://"
        )
    return f"{schemes.pop()}://{','.join(url.partition('://')[2].rstrip('/') for url in urls)}"
