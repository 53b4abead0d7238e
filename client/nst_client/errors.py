"""The errors of a client of served styles.

NstError
└── ServiceError
    ├── Unreachable     no server answers at the address, or the connection broke
    ├── Unavailable     the server cannot answer now: a model is being replaced, or the queue is full
    ├── TimedOut        the server did not answer within the timeout
    ├── UnknownStyle    the server does not have the style; the message lists those that it has
    ├── Untrusted       no trusted CA has signed the server's certificate, or it is another host's
    └── Rejected        the server answered with an error

The first two pass by themselves: a client retries (see `StyleClient`).
"""

from __future__ import annotations

from nst_core.errors import NstError


class ServiceError(NstError):
    """A served model cannot be called."""


class Unreachable(ServiceError):
    """No server answers at the address, or the connection broke."""


class Unavailable(ServiceError):
    """The server cannot answer now."""


class TimedOut(ServiceError):
    """The server did not answer within the timeout."""


class UnknownStyle(ServiceError):
    """The server does not have this style."""


class Untrusted(ServiceError):
    """No trusted CA has signed the server's certificate, or it is for another host."""


class Rejected(ServiceError):
    """The server answered with an error."""
