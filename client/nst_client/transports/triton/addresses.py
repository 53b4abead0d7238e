"""Parse and resolve the host names and addresses in servers' URLs."""

from __future__ import annotations

import ipaddress
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nst_core.errors import InputError

HTTPS_PORT = 443
"""The default port of https:// and grpcs://, as in gRPC itself."""

MAX_PORT = 65535

RESOLVER = re.compile("dns:(//[^/,]*/)?")
"""gRPC's prefix that selects the DNS server for a name: dns://server/name:port."""

_SERVER = re.compile(r"""(?:\[(?P<six>[^\[\]/?#\s]+)\]|(?P<name>[^\[\]:/?#\\<>"'%\s]+))(?::(?P<port>.*))?""")


@dataclass(frozen=True)
class ServerAddress:
    """A host name or an address without brackets, and a port; None for the scheme's default."""

    host: str
    port: int | None


def server_addresses(hosts: str) -> list[ServerAddress]:
    """Parse `host:port[,host:port]`. Raises `InputError` that says what is wrong with the text."""
    return [_server_address(RESOLVER.sub("", text)) for text in hosts.split(",")]


def _server_address(text: str) -> ServerAddress:
    if "@" in text:
        raise InputError(
            "a URL cannot contain a user or a password; give the server's token in NST_TOKEN or --token-file"
        )
    if text.count(":") > 1 and not text.startswith("["):
        raise InputError("an IPv6 address needs brackets; write it as [::1]:8001")
    found = _SERVER.fullmatch(text)
    if found is None or not text.isprintable():
        raise InputError(f"{text!r} is not a host name or an address")
    number = found["port"]
    if number is not None and not (re.fullmatch("[0-9]{1,5}", number) and 0 < int(number) <= MAX_PORT):
        raise InputError(f"{number!r} is not a port; give a number from 1 to {MAX_PORT}")
    return ServerAddress(found["six"] or found["name"], None if number is None else int(number))


def resolved(hosts: list[str]) -> list[str]:
    """Resolve hosts to addresses with ports, all of one family as gRPC requires.

    gRPC itself resolves a single name only.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        found: list[Any] = []
        for host in hosts:
            with suppress(OSError, ValueError):  # one name may be unknown now; the other servers answer
                (server,) = server_addresses(host)
                found += socket.getaddrinfo(server.host, server.port or HTTPS_PORT, family, socket.SOCK_STREAM)
        if found:
            pairs = [(address[0], address[1]) for *_, address in found]
            return [f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}" for ip, port in pairs]
    return []


def is_this_host(host: str) -> bool:
    """Return whether all addresses of a host belong to this machine, which can bind only its own."""
    try:
        (server,) = server_addresses(host)
        found = socket.getaddrinfo(server.host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(
        ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback or _can_bind(family, address)
        for family, *_, address in found
    )


def _can_bind(family: int, address: tuple[Any, ...]) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True
