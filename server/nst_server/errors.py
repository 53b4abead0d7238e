"""What nst_server raises besides `InputError`."""

from __future__ import annotations

from nst_core.errors import NstError


class ServerError(NstError):
    """Triton cannot be found, installed, started, made ready, or asked for something."""
