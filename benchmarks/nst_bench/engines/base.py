"""What an engine is to the benchmarks: a function that stylizes one image, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable

from nst_core.errors import NstError
from nst_core.images import Pixels

Stylize = Callable[[Pixels], Pixels]
"""`uint8 [H, W, 3]` to the same. Both are in main memory, so a GPU's copies count, and the result is complete."""


class MissingEngine(NstError):
    """An engine that cannot run here; the message is the reason."""
