"""Calling a served style: from Python with `StyleClient`, from the shell with `nst stylize`."""

from nst_client.client import Style, StyleClient
from nst_client.errors import Rejected, ServiceError, TimedOut, UnknownStyle, Unreachable

__all__ = ["Rejected", "ServiceError", "Style", "StyleClient", "TimedOut", "UnknownStyle", "Unreachable"]
