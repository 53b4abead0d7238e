"""Folders of the user's, and files that appear whole or not at all."""

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
"""What writing to an open file can meet: a full disk, a quota, a limit of size, a broken or read-only disk."""


def cache_folder() -> Path:
    """For what can be made again, such as downloaded weights: `$NST_CACHE`, else the user's cache folder for nst.

    On Linux that is `nst` in `$XDG_CACHE_HOME` or `~/.cache`. The folder need not exist.
    Raises `InputError` for a user without a home folder.
    """
    return _folder(Variable.CACHE, platformdirs.user_cache_dir)


def state_folder() -> Path:
    """What running servers leave for commands that control them: `$NST_STATE`, else the user's state folder for nst.

    On Linux that is `nst` in `$XDG_STATE_HOME` or `~/.local/state`. Otherwise as `cache_folder`.
    """
    return _folder(Variable.STATE, platformdirs.user_state_dir)


def _folder(variable: str, user_folder: Callable[..., str]) -> Path:
    if chosen := os.environ.get(variable):
        return Path(chosen)
    folder = ""
    with suppress(RuntimeError):  # a user id without an entry and without HOME, as OpenShift gives containers
        folder = user_folder("nst", appauthor=False)
    if not Path(folder).is_absolute():
        raise InputError(
            f"user id {os.getuid()} has no home folder: set {variable} to a folder that this user can write to"
        )
    return Path(folder)


@contextmanager
def atomic_write(path: Path, *, private: bool = False, variable: str = "") -> Iterator[Path]:
    """Give a path beside `path` to write to; rename it to `path` when the block ends well.

    The folder is made if it is missing. After an error nothing is left behind and an older file at `path` is as it
    was; after the rename the file survives a loss of power. A symbolic link at `path` stays, and the file that it
    names is replaced. Who may read a file that is replaced stays as it was; a `private` one is only its owner's to
    read, from the first byte.
    Raises `WriteError` when the file cannot be written, on a full disk for instance, or is a device; it names the
    environment `variable` that chooses another folder, if one does.
    """
    target = Path(os.path.realpath(path))
    mode = _mode(target)
    if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise WriteError(f"cannot write {path}: it is no regular file, and a rename would replace it")
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
    """The type and the permissions of what is at `path`, as `stat` gives them; 0 if there is nothing to be seen."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _cannot_write(path: Path, error: OSError, variable: str) -> WriteError:
    advice = f"; set {variable} to a folder that can be written to" if variable else ""
    return WriteError(f"cannot write {path}: {error.strerror or error}{advice}")


def _flush(path: Path) -> None:
    """Have the system write a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
