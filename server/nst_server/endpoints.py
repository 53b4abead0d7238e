"""Addresses and ports of a Triton."""

from __future__ import annotations

import errno
import ipaddress
import os
import random
import socket
from dataclasses import dataclass, replace

from nst_core.errors import InputError
from nst_server.errors import ServerError

SERVICES = ("http", "grpc", "metrics")

ALL_ADDRESSES = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses that mean all interfaces, and where this machine reaches a server that listens on them."""

CHOSEN_PORTS = range(10_240, 32_768)
"""Range of automatically chosen ports: below those that Linux gives to outgoing connections, which could take a port
before Triton starts."""


@dataclass(frozen=True)
class Endpoints:
    """Addresses and ports of a Triton.

    With TLS, `plain` holds the ports of 127.0.0.1 on which its own HTTP and metrics, which do not support TLS, listen.
    """

    address: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    plain: tuple[int, int] | None = None

    @classmethod
    def free(cls) -> Endpoints:
        """Choose three free ports of 127.0.0.1."""
        http, grpc, metrics = _free_ports(3)
        return cls("127.0.0.1", http, grpc, metrics)

    def behind_tls(self) -> Endpoints:
        """Return the same endpoints with TLS, and with free plain ports behind it."""
        http, metrics = _free_ports(2)
        return replace(self, plain=(http, metrics))

    @property
    def http(self) -> str:
        """URL for HTTP."""
        return f"{'https' if self.plain else 'http'}://{self._at(self.http_port)}"

    @property
    def grpc(self) -> str:
        """URL for gRPC."""
        return f"{'grpcs' if self.plain else 'grpc'}://{self._at(self.grpc_port)}"

    @property
    def metrics(self) -> str:
        """URL of the Prometheus metrics."""
        return f"{'https' if self.plain else 'http'}://{self._at(self.metrics_port)}/metrics"

    @property
    def control(self) -> str:
        """URL at which this machine reaches Triton's plain HTTP."""
        if self.plain:
            return f"http://127.0.0.1:{self.plain[0]}"
        return f"http://{host(ALL_ADDRESSES.get(self.address, self.address))}:{self.http_port}"

    @property
    def listening(self) -> dict[str, tuple[str, int]]:
        """Triton's own listeners by service: the numeric address and the port.

        Raises `InputError` for a name without an address.
        """
        number = self._number()
        if self.plain:
            http, metrics = (("127.0.0.1", port) for port in self.plain)
        else:
            http, metrics = (number, self.http_port), (number, self.metrics_port)
        return {"http": http, "grpc": (number, self.grpc_port), "metrics": metrics}

    def check_free(self) -> None:
        """Raise `ServerError` if a port cannot be listened on; it names the first such port, or the address.

        Raises `InputError` for an invalid address, and for a port that two services share.
        """
        number, ports = self._number(), [getattr(self, f"{service}_port") for service in SERVICES]
        for port in {port for port in ports if ports.count(port) > 1}:
            raise InputError(f"port {port} is given to two of HTTP, gRPC and metrics; give each its own port")
        for service, port in zip(SERVICES, ports, strict=True):
            try:
                socket.create_server((number, port), family=_family(number)).close()
            except OSError as error:
                raise ServerError(self._cannot(error, port, f"--{service}-port")) from error

    def _cannot(self, error: OSError, port: int, option: str) -> str:
        """Return the message for a port that cannot be listened on."""
        reason = os.strerror(error.errno) if error.errno else str(error)
        line = f"cannot listen on {self._at(port)} ({reason})"
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return f"{line}; set --address to an address of this machine (0.0.0.0 for all of IPv4, :: for all of IPv6)"
        return f"{line}; choose another with {option}"

    def _at(self, port: int) -> str:
        return f"{host(self.address)}:{port}"

    def _number(self) -> str:
        """Resolve the address to its number, such as `localhost` to `127.0.0.1`."""
        if "%" in self.address:
            raise InputError(f"--address {self.address}: Triton does not support a zone; use :: for all addresses")
        try:
            found = socket.getaddrinfo(self.address, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            raise InputError(
                f"--address {self.address}: no such address; use one of this machine, such as 127.0.0.1 or ::1"
            ) from error
        return str(found[0][4][0])


def host(address: str) -> str:
    """Format an address for a URL: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


def _family(number: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ipaddress.ip_address(number).version == 6 else socket.AF_INET


def _free_ports(count: int) -> list[int]:
    """Choose different free ports of 127.0.0.1 at random, so that two processes rarely choose the same."""
    chance = random.SystemRandom()
    ports: list[int] = []
    while len(ports) < count:
        port = chance.choice(CHOSEN_PORTS)
        if port not in ports and _is_free(port):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
