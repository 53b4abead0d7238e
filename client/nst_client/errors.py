"""What can go wrong between an application and a served style.

NstError
└── ServiceError
    ├── Unreachable     nobody answers at the address
    ├── TimedOut        the server is there, and its answer took longer than allowed
    ├── UnknownStyle    the server lacks the style; the ones that it has are named
    └── Rejected        the server answered with an error
"""

from __future__ import annotations

from nst_core.errors import NstError


class ServiceError(NstError):
    """A served model cannot be called."""


class Unreachable(ServiceError):
    """Nobody answers at the address."""


class TimedOut(ServiceError):
    """The server is there, and its answer took longer than allowed."""


class UnknownStyle(ServiceError):
    """The server does not have this style."""


class Rejected(ServiceError):
    """The server answered with an error."""
