"""Turns what goes wrong with a Triton server into errors that say what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nst_client.errors import Rejected, ServiceError, TimedOut, Unavailable, Unreachable, Untrusted
from nst_client.transports.triton.proxies import Proxy
from nst_client.transports.triton.settings import TritonSettings
from nst_core.errors import InputError

UNKNOWN_REGION = "Unable to find shared memory region"
"""Triton's message for a region that it does not know."""

UNAVAILABLE_MESSAGES = (
    "has no available versions",
    "is not at ready state",
    "Server is stopping",
    "maximum queue size",
    "is not healthy",
)
"""Triton's messages while it cannot answer. The last one follows the death of a model's process, which nst-serve
restarts."""

MAX_MESSAGE_CHARACTERS = 500
"""How much of a server's message an error repeats."""


class UnknownRegion(Rejected):
    """The server does not know a region of shared memory, since it has restarted or is another server."""


class UnusableRegion(Rejected):
    """The server cannot register a region: it does not see this process's memory, or shares none."""


class NoRoom(InputError):
    """There is no memory left to share."""


class ServerErrors:
    """The errors of a server. Their messages name its address and the proxy, once `proxy` is set."""

    def __init__(self, address: str, scheme: str, settings: TritonSettings) -> None:
        self.address, self._scheme, self._settings = address, scheme, settings
        self.proxy: Proxy | None = None

    @property
    def through_proxy(self) -> str:
        """The part of a message that names the proxy; empty without a proxy."""
        return "" if self.proxy is None else f" through {self.proxy}"

    def of_message(self, message: str) -> ServiceError | None:
        """The error of a message that both protocols have; None for any other message."""
        if "is restricted, expecting header" in message:
            given = "none was given" if self._settings.token is None else "the one that was given is wrong"
            return Rejected(
                f"{self.address} asks for a token, and {given}: give it with --token-file FILE or in NST_TOKEN"
            )
        if message.startswith(UNKNOWN_REGION):
            return UnknownRegion(f"{self.address} answered: {one_line(message)}")
        if any(part in message for part in UNAVAILABLE_MESSAGES):
            return Unavailable(f"{self.address} cannot answer now: {one_line(message)}")
        return None

    def rejected(self, message: str) -> Rejected:
        """The server answered with a message of its own."""
        return Rejected(f"{self.address} answered: {one_line(message)}")

    def unreachable(self) -> Unreachable:
        """No server answers."""
        if self.proxy is not None:
            return Unreachable(
                f"no server answers at {self.address}{self.through_proxy}; "
                "if it is reached without a proxy, name it in no_proxy"
            )
        return Unreachable(
            f"no server answers at {self.address}; start one with nst-serve, or give its address with --url"
        )

    def timed_out(self) -> TimedOut:
        """The timeout has passed."""
        return TimedOut(
            f"{self.address} did not answer within {self._settings.timeout:g} s{self.through_proxy}; "
            "allow more with --timeout"
        )

    def no_tls(self) -> ServiceError:
        """The server answers without TLS."""
        return ServiceError(f"{self.address} does not speak TLS: is it {self._scheme}://{self._settings.host}?")

    def untrusted(self, reason: str) -> Untrusted:
        """The server's certificate is not trusted."""
        return Untrusted(f"the certificate of {self.address} is not trusted ({reason}): give its CA with --ca FILE")

    @contextmanager
    def unexpected_answer(self, question: str) -> Iterator[None]:
        """Raises `ServiceError` where the block cannot read an answer, since it is not of the form of Triton's."""
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ServiceError(
                f"{self.address} does not answer as Triton does {question}{self.through_proxy}: {_reason(error)}"
            ) from error


def one_line(message: str) -> str:
    """A server's message in a single line of limited length."""
    line = " ".join(message.split())
    return line if len(line) <= MAX_MESSAGE_CHARACTERS else f"{line[:MAX_MESSAGE_CHARACTERS]}..."


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return one_line(str(error)) or type(error).__name__
