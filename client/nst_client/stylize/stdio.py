"""The standard input as a content image, and the standard output as a target."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import BinaryIO

from nst_core.errors import ImageError, InputError, WriteError

STDIO = Path("-")
"""The standard input as a content image, the standard output as a target."""


def read_stdin(max_pixels: int) -> BinaryIO:
    """The whole standard input, unless it is longer than any image of `max_pixels` could be. Raises `ImageError`."""
    if sys.stdin is None:  # closed by the parent process
        raise ImageError("- is an image from the standard input, which is closed: pass an image by < or |")
    if sys.stdin.isatty():
        raise ImageError("- is an image from the standard input, which is the terminal: pass an image by < or |")
    max_bytes = 8 * max_pixels + 2**26  # four channels of 16 bits, not compressed, and metadata
    try:
        data = sys.stdin.buffer.read(max_bytes + 1)
    except OSError as error:
        raise ImageError(f"cannot read the standard input: {error.strerror or error}") from error
    if not data:
        raise ImageError("the standard input is empty: pass an image by < or |")
    if len(data) > max_bytes:
        raise ImageError(f"the standard input is longer than {max_bytes / 1e6:.0f} MB: no image of {max_pixels} pixels")
    return io.BytesIO(data)


def write_image_to_stdout(data: bytes) -> None:
    """Write an encoded image. Raises `InputError` if the output is the terminal, and `WriteError`."""
    if sys.stdout is not None and sys.stdout.isatty():
        raise InputError("-o - writes the image to the standard output, which is the terminal: use > or |")
    write_to_stdout(data)


def write_to_stdout(data: bytes) -> None:
    """Write and flush. Raises `WriteError` if the output is closed or on a full disk."""
    if sys.stdout is None:  # closed by the parent process
        raise WriteError("cannot write to the standard output: it is closed")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise WriteError(f"cannot write to the standard output: {error.strerror or error}") from error
