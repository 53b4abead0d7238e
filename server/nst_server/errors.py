"""Exceptions of nst_server besides `InputError`."""

from __future__ import annotations

from nst_core.errors import NstError


class ServerError(NstError):
    """Triton cannot be found, installed, started or reached, or it refuses a call."""
