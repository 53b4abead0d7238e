"""How to reach a Triton server, and whose certificate to trust."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from nst_client.transports.triton.addresses import ServerAddress, is_this_host, server_addresses
from nst_core.errors import InputError


@dataclass(frozen=True)
class TritonSettings:
    """A server, or several with commas between their hosts; see `StyleClient`.

    `aio` is for asyncio; `path` is the prefix of Triton's paths behind a reverse proxy. Raises `InputError` for
    invalid settings.
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
            raise InputError(
                "the token is empty or has characters other than printable ASCII; copy it as it was issued"
            )
        if self.ca is not None:
            _check_ca(self.ca)
        if self.shared_memory and self.several:
            raise InputError(
                f"shared memory needs a single server, but {self.host} are several; leave out shared_memory"
            )
        if self.shared_memory and not is_this_host(self.host):
            raise InputError(
                f"shared memory needs a server on this host, but {self.host} is another; leave out shared_memory"
            )

    @property
    def several(self) -> bool:
        """Whether the settings list several servers; gRPC handles several addresses of a single name."""
        return "," in self.host

    @property
    def servers(self) -> list[ServerAddress]:
        """The hosts and ports."""
        return server_addresses(self.host)


def system_ca() -> Path | None:
    """Return the file of the CAs that this system trusts; None if there is none and libraries use their own."""
    file = ssl.get_default_verify_paths().cafile
    return Path(file) if file else None


def _check_ca(ca: Path) -> None:
    try:
        ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise InputError(f"{ca} has no certificates in PEM format; check --ca") from error
    except OSError as error:
        raise InputError(f"cannot read {ca} ({error.strerror}); check --ca") from error
