"""Calling a served style: from Python with `StyleClient` or `AsyncStyleClient`, from the shell with `nst stylize`."""

from nst_client.client import AsyncStyleClient, StyleClient
from nst_client.errors import Rejected, ServiceError, TimedOut, Unavailable, UnknownStyle, Unreachable, Untrusted
from nst_client.statistics import Statistics
from nst_client.styles import Style
from nst_client.testing import MockTransport
from nst_client.transports import Request, Transport

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
