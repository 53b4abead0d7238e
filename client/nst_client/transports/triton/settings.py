"""How a Triton server is reached, and whom it must prove to be."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from nst_client.transports.triton.addresses import ServerAddress, is_this_host, server_addresses
from nst_core.errors import InputError


@dataclass(frozen=True)
class TritonSettings:
    """A server, or several with commas between their hosts; see `StyleClient`.

    `aio` is for asyncio, `path` what a reverse proxy has before Triton's own paths. Raises `InputError` for invalid
    settings.
    """

    host: str
    tls: bool = False
    timeout: float = 60.0
    token: str | None = field(default=None, repr=False)
    ca: Path | None = None
    shared_memory: bool | None = None
    aio: bool = False
    path: str = ""

    def __post_init__(self) -> None:
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise InputError("the token has other characters than printable ASCII, or none: take it as it was issued")
        if self.ca is not None:
            _check_ca(self.ca)
        if self.shared_memory and self.several:
            raise InputError(f"shared memory is for one server, and {self.host} are several: leave shared_memory out")
        if self.shared_memory and not is_this_host(self.host):
            raise InputError(f"shared memory reaches no other host, and {self.host} is one: leave shared_memory out")

    @property
    def several(self) -> bool:
        """Whether the settings list several servers; the addresses of a single name are gRPC's business."""
        return "," in self.host

    @property
    def servers(self) -> list[ServerAddress]:
        """The hosts and ports."""
        return server_addresses(self.host)


def system_ca() -> Path | None:
    """The file of the CAs that this system trusts; None where there is none, and libraries use their own."""
    file = ssl.get_default_verify_paths().cafile
    return Path(file) if file else None


def _check_ca(ca: Path) -> None:
    try:
        ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise InputError(f"{ca}: no certificates in PEM form") from error
    except OSError as error:
        raise InputError(f"{ca}: {error.strerror}") from error
