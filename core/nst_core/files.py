"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nst_core.errors import WriteError


@contextmanager
def written_whole(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Give a path beside `path` to write to; rename it to `path` when the block ends well.

    The folder is made if it is missing. After an error nothing is left behind and an older
    file at `path` is as it was. A `private` file is only its owner's to read, from the first byte
    on. Raises `WriteError` when the folder cannot be written.
    """
    beside = path.with_name(f".nst-{secrets.token_hex(8)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(beside, os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666))
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
