"""Where a Triton is reached."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace

from nst_server.errors import ServerError


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
        return f"{'https' if self.plain else 'http'}://{self.address}:{self.http_port}"

    @property
    def grpc(self) -> str:
        """The URL that the client takes for gRPC."""
        return f"{'grpcs' if self.plain else 'grpc'}://{self.address}:{self.grpc_port}"

    @property
    def metrics(self) -> str:
        """Where Prometheus finds the metrics."""
        return f"{'https' if self.plain else 'http'}://{self.address}:{self.metrics_port}/metrics"

    @property
    def control(self) -> str:
        """The URL at which this machine reaches Triton's plain HTTP."""
        if self.plain:
            return f"http://127.0.0.1:{self.plain[0]}"
        return f"http://{'127.0.0.1' if self.address == '0.0.0.0' else self.address}:{self.http_port}"

    @property
    def listening(self) -> dict[str, tuple[str, int]]:
        """Triton's own listeners by service: address and port."""
        if self.plain:
            http, metrics = (("127.0.0.1", port) for port in self.plain)
        else:
            http, metrics = (self.address, self.http_port), (self.address, self.metrics_port)
        return {"http": http, "grpc": (self.address, self.grpc_port), "metrics": metrics}

    def check_free(self) -> None:
        """Raise `ServerError` naming the first port that is taken or cannot be had."""
        for option in ("http", "grpc", "metrics"):
            port = getattr(self, f"{option}_port")
            try:
                socket.create_server((self.address, port)).close()
            except OSError as error:
                raise ServerError(
                    f"cannot listen on {self.address}:{port} ({error.strerror}); choose another with --{option}-port"
                ) from error


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports
