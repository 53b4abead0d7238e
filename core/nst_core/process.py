"""Settings of the whole process that third-party libraries have, changed for a while and restored.

A library leaves such settings alone, since they belong to the program that uses it. A command's process is its own.
"""

from __future__ import annotations

import ctypes
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def settings_of_a_command() -> Iterator[None]:
    """Let the errors of `nst_core.images` alone say what is wrong, and its limits alone hold; restore all at the end.

    Otherwise Pillow, its logger and libtiff write to stderr what they find in a damaged file, and Pillow refuses
    images above a limit of its own.
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


@contextmanager
def default_variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable, unless it is set, while a library starts that reads it once."""
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
    except (AttributeError, OSError):  # a Pillow with its libtiff inside has no such name outside
        yield
        return
    set_handler.restype, set_handler.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    before = set_handler(None)
    try:
        yield
    finally:
        set_handler(before)
