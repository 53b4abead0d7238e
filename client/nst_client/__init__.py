"""Call a served style: from Python with `StyleClient` or `AsyncStyleClient`, from the shell with `nst stylize`."""

from nst_client.client import AsyncStyleClient, StyleClient
from nst_client.errors import Rejected, ServiceError, TimedOut, Unavailable, UnknownStyle, Unreachable, Untrusted
from nst_client.styles import Style
from nst_client.testing import MockTransport
from nst_client.transports.base import Request, Transport
from nst_client.transports.statistics import Statistics

__all__ = [
    "AsyncStyleClient",
    "MockTransport",
    "Rejected",
    "Request",
    "ServiceError",
    "Statistics",
    "Style",
    "StyleClient",
    "TimedOut",
    "Transport",
    "Unavailable",
    "UnknownStyle",
    "Unreachable",
    "Untrusted",
]
