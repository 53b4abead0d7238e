"""Memory as one process uses it: a training or an optimisation asks for the same sizes again and again."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def reuse_freed_memory() -> None:
    """Let glibc keep what is freed instead of giving it back to the system; for the whole process.

    By default each feature map of more than 32 MiB is mapped anew, and the system clears its pages
    on first touch: a third of an iteration at 1024 pixels (dev/LOG.md). Elsewhere than on glibc
    nothing happens. For a command's own process; a library has no business in its caller's.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)
