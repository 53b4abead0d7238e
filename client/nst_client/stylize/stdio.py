"""Standard input as a content image, standard output as a target."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import BinaryIO

from nst_core.errors import ImageError, InputError, WriteError

STDIO = Path("-")
"""Standard input as a content image, standard output as a target."""


def read_stdin(max_pixels: int) -> BinaryIO:
    """Read all of stdin. Raises `ImageError` if it is longer than any image of `max_pixels` pixels could be."""
    if sys.stdin is None:  # closed by the parent process
        raise ImageError("cannot read an image from stdin, which is closed; pass one with < or |")
    if sys.stdin.isatty():
        raise ImageError("cannot read an image from stdin, which is the terminal; pass one with < or |")
    max_bytes = 8 * max_pixels + 2**26  # four channels of 16 bits without compression, and metadata
    try:
        data = sys.stdin.buffer.read(max_bytes + 1)
    except OSError as error:
        raise ImageError(f"cannot read stdin: {error.strerror or error}") from error
    if not data:
        raise ImageError("stdin is empty; pass an image with < or |")
    if len(data) > max_bytes:
        raise ImageError(
            f"stdin has over {max_bytes / 1e6:.0f} MB, too much for an image of {max_pixels} pixels; raise --max-pixels"
        )
    return io.BytesIO(data)


def write_image_to_stdout(data: bytes) -> None:
    """Write an encoded image. Raises `InputError` if stdout is the terminal, and `WriteError`."""
    if sys.stdout is not None and sys.stdout.isatty():
        raise InputError("--output - writes the image to stdout, which is the terminal; redirect it with > or |")
    write_to_stdout(data)


def write_to_stdout(data: bytes) -> None:
    """Write and flush. Raises `WriteError` if stdout is closed or its disk is full."""
    if sys.stdout is None:  # closed by the parent process
        raise WriteError("cannot write to stdout: it is closed")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise WriteError(f"cannot write to stdout: {error.strerror or error}") from error
