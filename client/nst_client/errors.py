"""The errors that a client raises.

    NstError
    └── ServiceError
        ├── Unreachable     no server answers at the address, or the connection broke
        ├── Unavailable     the server cannot answer now: a model is being replaced, or the queue is full
        ├── TimedOut        the server did not answer within the timeout
        ├── UnknownStyle    the server does not have the style; the message names the nearest, or lists all
        ├── Untrusted       no trusted CA has signed the server's certificate, or it belongs to another host
        └── Rejected        the server answered with an error

`Unreachable` and `Unavailable` are temporary, so a client retries after them (see `StyleClient`). Invalid arguments
raise `nst_core.errors.InputError`, which is an `NstError` too. Each message is one line, and says what to do.
"""

from __future__ import annotations

from nst_core.errors import NstError


class ServiceError(NstError):
    """Calling a served style failed; the base class of all errors here."""


class Unreachable(ServiceError):
    """No server answers at the address, or the connection broke. The client retries."""


class Unavailable(ServiceError):
    """The server cannot answer now: a model is being replaced, or the queue is full. The client retries."""


class TimedOut(ServiceError):
    """The server did not answer within the timeout, retries included."""


class UnknownStyle(ServiceError):
    """The server does not have this style. The message names the nearest style, or lists all."""


class Untrusted(ServiceError):
    """No trusted CA has signed the server's certificate, or it belongs to another host."""


class Rejected(ServiceError):
    """The server answered with an error, which the message repeats."""
