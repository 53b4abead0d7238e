"""What can go wrong between an application and a served style.

NstError
└── ServiceError
    ├── Unreachable     nobody answers at the address, or the connection was cut
    ├── Unavailable     the server is there, and cannot answer now: a model is being replaced, the queue is full
    ├── TimedOut        the server is there, and its answer took longer than allowed
    ├── UnknownStyle    the server lacks the style; the ones that it has are named
    ├── Untrusted       the server's certificate is not signed by anybody whom we trust
    └── Rejected        the server answered with an error

The first two pass by themselves: a client asks again (see `StyleClient`).
"""

from __future__ import annotations

from nst_core.errors import NstError


class ServiceError(NstError):
    """A served model cannot be called."""


class Unreachable(ServiceError):
    """Nobody answers at the address, or the connection was cut."""


class Unavailable(ServiceError):
    """The server is there, and cannot answer now."""


class TimedOut(ServiceError):
    """The server is there, and its answer took longer than allowed."""


class UnknownStyle(ServiceError):
    """The server does not have this style."""


class Untrusted(ServiceError):
    """The server's certificate is not signed by anybody whom we trust, or is another host's."""


class Rejected(ServiceError):
    """The server answered with an error."""
