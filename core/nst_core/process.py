"""Process-wide settings: third-party libraries, loggers, the environment and the memory allocator.

They belong to the program: a library leaves them alone or restores them, but a command owns its process.
"""

from __future__ import annotations

import ctypes
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_HEAP_BYTES = 64 * 2**20
"""Size of a heap in glibc; a thread's empty heap is unmapped unless this much is to stay."""


@contextmanager
def settings_of_a_command() -> Iterator[None]:
    """Silence Pillow and libtiff, and lift Pillow's pixel limit, while a command runs.

    `nst_core.images` reports damaged files and has a limit of its own. Otherwise Pillow, its logger and libtiff also
    write to stderr, and Pillow refuses large images.
    """
    from PIL import Image

    max_pixels, log, silence = Image.MAX_IMAGE_PIXELS, logging.getLogger("PIL"), logging.NullHandler()
    with ExitStack() as restored:
        restored.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module="PIL")
        restored.callback(setattr, Image, "MAX_IMAGE_PIXELS", max_pixels)
        Image.MAX_IMAGE_PIXELS = None
        restored.callback(log.removeHandler, silence)
        log.addHandler(silence)
        restored.enter_context(_silent_libtiff())
        yield


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next request of its size, for the whole process.

    By default glibc maps each large block (from 128 KiB to 32 MiB up) when it is allocated and unmaps it when it is
    freed, so the system clears every page again on first touch: a third of a training iteration at 1024 pixels, and
    half of the transport of an image between client and server.

    Memory stays bounded: each of glibc's arenas (threads have their own) keeps its peak use, and the gaps between
    blocks, until the process ends. With blocks of random sizes up to 64 MiB that was 1.2 times the peak of one thread,
    and 1.7 times that of four. Address space, not memory, grows by another 64 MiB per arena. On other C libraries
    nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)
    mallopt(_M_TOP_PAD, _HEAP_BYTES)


@contextmanager
def without_warnings(name: str) -> Iterator[None]:
    """Hide the warnings of a logger within the block."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def default_variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable within the block, unless it is set, for a library that reads it at its start."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


@contextmanager
def _silent_libtiff() -> Iterator[None]:
    from PIL import _imaging

    try:
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (AttributeError, OSError):  # a Pillow with a built-in libtiff exports no such name
        yield
        return
    set_handler.restype, set_handler.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    before = set_handler(None)
    try:
        yield
    finally:
        set_handler(before)
