"""Access control: who may make which calls to a server.

Triton divides its calls into groups, and a group can require a secret, in the HTTP header `nst-token` or the gRPC
metadata `triton-grpc-protocol-nst-token`. There are two secrets:

- **The key** is new at every start and is kept in the server's state file, which only its user can read. It always
  guards model control (loading, unloading, and the repository's index), tracing and logging: whoever may load a
  model can run code on the server, and on 127.0.0.1 that would be every user of the machine, and every web page in
  their browsers.
- **The token** is optional and chosen by the user. It guards everything else except the health calls, so that probes
  work without a secret.

Without a token, everyone who reaches the address may call the models. Shared memory is then open on a loopback
address only, and guarded by the key elsewhere, since it makes the server read and write its own machine's memory.
Triton cannot guard its metrics.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nst_core.contract import TOKEN_HEADER, Variable
from nst_core.errors import InputError

CONTROL = ("model-repository", "trace", "logging")
CALLS = ("metadata", "inference", "model-config", "statistics")
SHARED_MEMORY = "shared-memory"
"""Triton's groups of calls, except `health`."""


@dataclass(frozen=True)
class Access:
    """The secrets of one server; its `repr` does not show them."""

    key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)

    @classmethod
    def new(cls, token: str | None = None) -> Access:
        """Create the secrets with a new random key and the user's token."""
        return cls(secrets.token_urlsafe(24), token)

    def options(self, address: str) -> list[str]:
        """Return Triton's options that guard its groups, for a server that listens on `address`."""
        by_key, by_token = list(CONTROL), list(CALLS)
        if self.token or is_loopback(address):
            by_token.append(SHARED_MEMORY)
        else:
            by_key.append(SHARED_MEMORY)
        closed = [(by_key, self.key)]
        if self.token:
            closed.append((by_token, self.token))
        return [
            f"--{option}={','.join(groups)}:{TOKEN_HEADER}={secret}"
            for groups, secret in closed
            for option in ("http-restricted-api", "grpc-restricted-protocol")
        ]

    @property
    def secrets(self) -> list[str]:
        """The key and the token, if any."""
        return [secret for secret in (self.key, self.token) if secret]


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach an address."""
    with suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return address == "localhost"


def read_token(file: Path | None) -> str | None:
    """Return the token in `file`, else in NST_TOKEN, else None.

    Raises `InputError` for a file that cannot be read, and for a token that is not a single word of letters, digits and
    `._~+/=-`, which every client can put into a header.
    """
    if file is None:
        text, source = os.environ.get(Variable.TOKEN, ""), str(Variable.TOKEN)
        if not text:
            return None
    else:
        try:
            text, source = file.read_text(), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the token in {file}: {getattr(error, 'strerror', error)}") from error
    token = text.strip()
    if not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", token):
        raise InputError(
            f"{source} is not a token: use one word of letters, digits and ._~+/=-, "
            "such as from openssl rand -base64 32 > FILE"
        )
    return token


def hide(pid: int, secrets: Iterable[str]) -> None:
    """Overwrite `secrets` in the arguments of a child that has read them, since `ps` shows arguments to every user.

    Triton accepts its secrets only as arguments. Where the kernel forbids the write, nothing happens.
    """
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end in proc(5), where pid is field 1
        with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            arguments = memory.read(end - start)
            for secret in secrets:
                arguments = arguments.replace(secret.encode(), b"*" * len(secret))
            memory.seek(start)
            memory.write(arguments)
