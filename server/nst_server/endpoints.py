"""Where a Triton is reached."""

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
"""Addresses that stand for all of a machine's, and where this machine reaches a server that listens on them."""

CHOSEN_PORTS = range(10_240, 32_768)
"""Where free ports are chosen: below those that Linux gives to outgoing connections, which could take a port between
its choice and Triton's start."""


@dataclass(frozen=True)
class Endpoints:
    """Where a Triton is reached.

    With TLS, `plain` are the ports of 127.0.0.1 where its own HTTP and metrics, which know no TLS, really listen.
    """

    address: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    plain: tuple[int, int] | None = None

    @classmethod
    def free(cls) -> Endpoints:
        """Three ports of 127.0.0.1 that nobody uses now."""
        http, grpc, metrics = _free_ports(3)
        return cls("127.0.0.1", http, grpc, metrics)

    def behind_tls(self) -> Endpoints:
        """The same with TLS, and free plain ports behind it."""
        http, metrics = _free_ports(2)
        return replace(self, plain=(http, metrics))

    @property
    def http(self) -> str:
        """The URL that the client takes for HTTP."""
        return f"{'https' if self.plain else 'http'}://{self._at(self.http_port)}"

    @property
    def grpc(self) -> str:
        """The URL that the client takes for gRPC."""
        return f"{'grpcs' if self.plain else 'grpc'}://{self._at(self.grpc_port)}"

    @property
    def metrics(self) -> str:
        """Where Prometheus finds the metrics."""
        return f"{'https' if self.plain else 'http'}://{self._at(self.metrics_port)}/metrics"

    @property
    def control(self) -> str:
        """The URL at which this machine reaches Triton's plain HTTP."""
        if self.plain:
            return f"http://127.0.0.1:{self.plain[0]}"
        return f"http://{host(ALL_ADDRESSES.get(self.address, self.address))}:{self.http_port}"

    @property
    def listening(self) -> dict[str, tuple[str, int]]:
        """Triton's own listeners by service: the address as a number, and the port.

        Raises `InputError` for a name that has no address.
        """
        number = self._number()
        if self.plain:
            http, metrics = (("127.0.0.1", port) for port in self.plain)
        else:
            http, metrics = (number, self.http_port), (number, self.metrics_port)
        return {"http": http, "grpc": (number, self.grpc_port), "metrics": metrics}

    def check_free(self) -> None:
        """Raise `ServerError` that names the first port that cannot be listened on, or the address.

        Raises `InputError` for what is no address, and for a port that is given to two services.
        """
        number, ports = self._number(), [getattr(self, f"{service}_port") for service in SERVICES]
        for port in {port for port in ports if ports.count(port) > 1}:
            raise InputError(f"port {port} stands for two of HTTP, gRPC and metrics: give each a port of its own")
        for service, port in zip(SERVICES, ports, strict=True):
            try:
                socket.create_server((number, port), family=_family(number)).close()
            except OSError as error:
                raise ServerError(self._cannot(error, port, f"--{service}-port")) from error

    def _cannot(self, error: OSError, port: int, option: str) -> str:
        """The message for a port that cannot be listened on."""
        reason = os.strerror(error.errno) if error.errno else str(error)
        line = f"cannot listen on {self._at(port)} ({reason})"
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return f"{line}: give an address of this machine with --address; 0.0.0.0 is all of IPv4's, :: all of IPv6's"
        return f"{line}; choose another with {option}"

    def _at(self, port: int) -> str:
        return f"{host(self.address)}:{port}"

    def _number(self) -> str:
        """The address that a name such as `localhost` stands for."""
        if "%" in self.address:
            raise InputError(f"--address {self.address}: Triton takes no address with a zone; use :: for all")
        try:
            found = socket.getaddrinfo(self.address, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            raise InputError(
                f"--address {self.address}: no such address; give one of this machine, such as 127.0.0.1 or ::1"
            ) from error
        return str(found[0][4][0])


def host(address: str) -> str:
    """An address as it stands in a URL: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


def _family(number: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ipaddress.ip_address(number).version == 6 else socket.AF_INET


def _free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1, by chance, so that two processes that choose at once rarely meet."""
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
