"""Engines: functions that stylize one image, or the reason why an engine is missing."""

from __future__ import annotations

from collections.abc import Callable

from nst_core.errors import NstError
from nst_core.images import Pixels

Stylize = Callable[[Pixels], Pixels]
"""Takes and returns `uint8 [H, W, 3]` in main memory, so that a GPU's copies count and the result is complete."""


class MissingEngine(NstError):
    """An engine cannot run here; the message is the reason."""
