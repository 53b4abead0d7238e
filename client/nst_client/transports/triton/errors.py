"""Turn the failures of a Triton server into errors that say what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nst_client.errors import Rejected, ServiceError, TimedOut, Unavailable, Unreachable, Untrusted
from nst_client.transports.triton.proxies import Proxy
from nst_client.transports.triton.settings import TritonSettings
from nst_core.errors import InputError

UNKNOWN_REGION = "Unable to find shared memory region"
"""Triton's message for an unknown region of shared memory."""

UNAVAILABLE_MESSAGES = (
    "has no available versions",
    "is not at ready state",
    "Server is stopping",
    "maximum queue size",
    "is not healthy",
)
"""Triton's messages while it cannot answer. The last one follows the death of a model's process, which `nst serve`
restarts."""

MAX_MESSAGE_CHARACTERS = 500
"""Maximum length of a server's message in an error."""


class UnknownRegion(Rejected):
    """The server does not know a region of shared memory: it has restarted, or is another server."""


class UnusableRegion(Rejected):
    """The server cannot register a region: it does not see this process's memory, or does not share any."""


class NoRoom(InputError):
    """Shared memory has no room for a region."""


class ServerErrors:
    """Creates the errors of a server. Messages name its address, and the proxy once `proxy` is set."""

    def __init__(self, address: str, scheme: str, settings: TritonSettings) -> None:
        self.address, self._scheme, self._settings = address, scheme, settings
        self.proxy: Proxy | None = None

    @property
    def through_proxy(self) -> str:
        """The part of a message that names the proxy; empty without one."""
        return "" if self.proxy is None else f" through {self.proxy}"

    def of_message(self, message: str) -> ServiceError | None:
        """Return the error for a message that both protocols share; None for any other message."""
        if "is restricted, expecting header" in message:
            problem = "needs a token" if self._settings.token is None else "does not accept this token"
            return Rejected(f"{self.address} {problem}; give the server's token with --token-file FILE or in NST_TOKEN")
        if message.startswith(UNKNOWN_REGION):
            return UnknownRegion(f"{self.address} answered: {one_line(message)}")
        if any(part in message for part in UNAVAILABLE_MESSAGES):
            return Unavailable(f"{self.address} cannot answer now: {one_line(message)}")
        return None

    def rejected(self, message: str) -> Rejected:
        """Return the error for any other message of the server."""
        return Rejected(f"{self.address} answered: {one_line(message)}")

    def unreachable(self) -> Unreachable:
        """Return the error for a server that does not answer."""
        if self.proxy is not None:
            return Unreachable(
                f"no server answers at {self.address}{self.through_proxy}; add it to no_proxy if it needs no proxy"
            )
        return Unreachable(
            f"no server answers at {self.address}; start one with nst serve, or give its address with --url"
        )

    def timed_out(self) -> TimedOut:
        """Return the error for a server that exceeds the timeout."""
        return TimedOut(
            f"{self.address} did not answer within {self._settings.timeout:g} s{self.through_proxy}; raise --timeout"
        )

    def no_tls(self) -> ServiceError:
        """Return the error for a server that answers without TLS."""
        return ServiceError(f"{self.address} does not use TLS; try {self._scheme}://{self._settings.host}")

    def untrusted(self, reason: str) -> Untrusted:
        """Return the error for a certificate that is not trusted."""
        return Untrusted(f"the certificate of {self.address} is not trusted ({reason}); give its CA with --ca FILE")

    @contextmanager
    def unexpected_answer(self, question: str) -> Iterator[None]:
        """Raise `ServiceError` if the block cannot read an answer, because its format is not Triton's."""
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ServiceError(
                f"the answer of {self.address} {question}{self.through_proxy} is not Triton's ({_reason(error)}); "
                "check the URL"
            ) from error


def one_line(message: str) -> str:
    """Return a server's message as a single line of limited length."""
    line = " ".join(message.split())
    return line if len(line) <= MAX_MESSAGE_CHARACTERS else f"{line[:MAX_MESSAGE_CHARACTERS]}..."


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return one_line(str(error)) or type(error).__name__
