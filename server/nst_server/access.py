"""Who may ask a server for what.

Triton sorts its calls into groups, and a group can be closed to requests without a secret, by the HTTP header
`nst-token` and the gRPC metadata `triton-grpc-protocol-nst-token`. There are two secrets:

- **The key** is made anew at every start and stands in the server's state file, which only its user can read. It
  always guards model control (loading, unloading, and the repository's index), tracing and logging: who may load
  a model can run code on the server, and on 127.0.0.1 that would be every user of the machine, and every web page
  in their browsers.
- **The token**, if there is one, is the user's, and guards everything else but the health calls, so that probes work
  without a secret.

Without a token everybody who reaches the address may call the models. Shared memory is then open on a loopback
address only, and guarded by the key elsewhere: it makes the server read and write its own machine's memory.
The metrics have no guard in Triton.
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
"""Triton's groups, all but `health`."""


@dataclass(frozen=True)
class Access:
    """The secrets of one server; they do not show in its `repr`."""

    key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)

    @classmethod
    def new(cls, token: str | None = None) -> Access:
        """A new random key, and the user's token."""
        return cls(secrets.token_urlsafe(24), token)

    def options(self, address: str) -> list[str]:
        """Triton's options that close its groups, for a server that is reached at `address`."""
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
        """Those that there are."""
        return [secret for secret in (self.key, self.token) if secret]


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    with suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return address == "localhost"


def read_token(file: Path | None) -> str | None:
    """The token in `file`, else in the environment's NST_TOKEN, else None.

    Raises `InputError` for a file that cannot be read, and for a token that is no single word of letters, digits
    and `._~+/=-`, which is what every client can put into a header.
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
            f"{source} holds no token: give one word of letters, digits and ._~+/=- "
            "(openssl rand -base64 32 > FILE makes one)"
        )
    return token


def hide(pid: int, secrets: Iterable[str]) -> None:
    """Overwrite `secrets` among the arguments of a child that has read them: everybody's `ps` shows arguments.

    Triton takes its secrets in no other way. Where the kernel forbids it, nothing happens.
    """
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5), which counts from pid = 1
        with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            arguments = memory.read(end - start)
            for secret in secrets:
                arguments = arguments.replace(secret.encode(), b"*" * len(secret))
            memory.seek(start)
            memory.write(arguments)
