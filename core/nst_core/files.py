"""The user's cache and state folders, and atomic writes."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from nst_core.contract import Variable
from nst_core.errors import InputError, WriteError

STORAGE_FAULTS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
"""`errno` values of failed writes: a full disk, a quota, a size limit, a broken or read-only disk."""


def cache_folder() -> Path:
    """Return the folder for data that can be made again, such as downloaded weights.

    It is `$NST_CACHE`, else the user's cache folder for nst: on Linux `nst` in `$XDG_CACHE_HOME` or `~/.cache`. The
    folder need not exist. Raises `InputError` for a user without a home folder.
    """
    return _folder(Variable.CACHE, platformdirs.user_cache_dir)


def state_folder() -> Path:
    """Return the folder for the state files of running servers.

    It is `$NST_STATE`, else the user's state folder for nst: on Linux `nst` in `$XDG_STATE_HOME` or `~/.local/state`.
    Otherwise as `cache_folder`.
    """
    return _folder(Variable.STATE, platformdirs.user_state_dir)


def _folder(variable: str, user_folder: Callable[..., str]) -> Path:
    if chosen := os.environ.get(variable):
        return Path(chosen)
    folder = ""
    with suppress(RuntimeError):  # a user id without an entry and without HOME, as OpenShift gives containers
        folder = user_folder("nst", appauthor=False)
    if not Path(folder).is_absolute():
        raise InputError(f"user id {os.getuid()} has no home folder; set {variable} to a writable folder")
    return Path(folder)


@contextmanager
def atomic_write(path: Path, *, private: bool = False, variable: str = "") -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    Missing folders are created. After an error, nothing is left behind and an older file at `path` is unchanged; after
    the rename, the file survives a power loss. A symbolic link at `path` stays, and its target is replaced. A replaced
    file keeps its permissions; a `private` file is readable by its owner only, from the first byte. Raises `WriteError`
    if the file cannot be written, for instance on a full disk, or is a device; the message names the environment
    `variable` that selects another folder, if any.
    """
    target = Path(os.path.realpath(path))
    mode = _mode(target)
    if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise WriteError(f"cannot write {path}: it is not a regular file; give another path")
    beside = target.with_name(f".nst-{secrets.token_hex(8)}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(beside, os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666))
    except OSError as error:
        raise _cannot_write(path, error, variable) from error
    try:
        try:
            yield beside
        except OSError as error:
            if error.errno in STORAGE_FAULTS:
                raise _cannot_write(path, error, variable) from error
            raise
        try:
            if mode and not private:
                beside.chmod(mode & 0o777)
            _flush(beside)
            beside.replace(target)
        except OSError as error:
            raise _cannot_write(path, error, variable) from error
        with suppress(OSError):  # some network file systems refuse it for folders; the file is whole there as well
            _flush(target.parent)
    finally:
        beside.unlink(missing_ok=True)


def _mode(path: Path) -> int:
    """Return the file type and permissions at `path`, as in `st_mode`; 0 if they cannot be read."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _cannot_write(path: Path, error: OSError, variable: str) -> WriteError:
    advice = f"; set {variable} to a writable folder" if variable else ""
    return WriteError(f"cannot write {path}: {error.strerror or error}{advice}")


def _flush(path: Path) -> None:
    """Write a file's content, or a folder's entries, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
