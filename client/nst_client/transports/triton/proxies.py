"""Find the proxy that the environment selects for a server; this machine's own addresses have none."""

from __future__ import annotations

import base64
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

from nst_core.errors import InputError


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy at `host`:`port`, from the environment variable `variable`.

    `credentials` is `user:password`; `str` leaves it out, for messages.
    """

    variable: str
    host: str
    port: int
    credentials: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"the proxy {self.url} of {self.variable}"

    @property
    def url(self) -> str:
        """The URL without credentials."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """The headers that the proxy needs in each connection or request."""
        if self.credentials is None:
            return {}
        return {"Proxy-Authorization": f"Basic {base64.b64encode(self.credentials.encode()).decode()}"}


def proxy_for_http(scheme: str, host: str, port: int) -> Proxy | None:
    """Return the proxy for `http` or `https` to a host, read from the environment as curl and Python do, or None.

    Raises `InputError` for a proxy that is not an HTTP proxy.
    """
    variables = [f"{scheme}_proxy"]
    # A server that runs CGI scripts sets HTTP_PROXY from a request's header "Proxy".
    if scheme != "http" or "REQUEST_METHOD" not in os.environ:
        variables.append(f"{scheme.upper()}_PROXY")
    return _proxy(variables, ("no_proxy", "NO_PROXY"), host, port)


def proxy_for_grpc(host: str, port: int) -> Proxy | None:
    """Return the proxy that gRPC uses for a host, from the variables that gRPC reads. Raises `InputError` as above."""
    return _proxy(("grpc_proxy", "https_proxy", "http_proxy"), ("no_grpc_proxy", "no_proxy"), host, port)


def is_loopback(host: str) -> bool:
    """Return whether a name or an address is this machine's own: `localhost`, 127.0.0.0/8, ::1."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.strip("[]").partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback or address.is_unspecified


def _proxy(variables: Sequence[str], exceptions: Sequence[str], host: str, port: int) -> Proxy | None:
    # The first variable that is set decides; an empty value means no proxy.
    variable = next((name for name in variables if name in os.environ), None)
    value = os.environ[variable].strip() if variable else ""
    if variable is None or not value or is_loopback(host):
        return None
    listed = next((os.environ[name] for name in exceptions if name in os.environ), "")
    if _is_listed(host, port, listed):
        return None
    return _parsed(variable, value)


def _is_listed(host: str, port: int, listed: str) -> bool:
    """Return whether `no_proxy` lists a host: its name or a suffix, its address, or a network such as 10.0.0.0/8."""
    if proxy_bypass_environment(f"{host}:{port}", {"no": listed}) or proxy_bypass_environment(host, {"no": listed}):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for entry in listed.split(",") if (network := _network(entry.strip())) is not None)


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return None


def _parsed(variable: str, value: str) -> Proxy:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        parts, host, port = urlsplit(""), None, 0
    if parts.scheme != "http" or not host:
        # The value may contain a password.
        raise InputError(
            f"{variable} is not the URL of an HTTP proxy; set it to http://host:port, or add the server to no_proxy"
        )
    user = None if parts.username is None else f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(variable, host, port, user)
