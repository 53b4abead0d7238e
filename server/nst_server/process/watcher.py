"""Load new and changed models of a repository while Triton runs, and unload removed ones.

Triton can watch a repository itself, but then loads whatever it finds. Here each model is checked first, and one that
was unloaded by command stays unloaded until its files change.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nst_server.control import Control
from nst_server.errors import ServerError
from nst_server.repository.models import read_repository

logger = logging.getLogger(__name__)

Fingerprint = frozenset[tuple[str, int, int, int]]
"""For each file of a model: its path, inode, size and modification time."""


class RepositoryWatcher:
    """The last seen state of a repository; `on_error` receives a line once for each model that must not be served."""

    def __init__(self, repository: Path, on_error: Callable[[str], None]) -> None:
        self._repository = repository
        self._on_error = on_error
        self._seen: dict[str, Fingerprint] = {}
        self._reported: set[str] = set()

    def names(self) -> list[str]:
        """List the models that can be served now, and count them as loaded."""
        names = self._servable()
        self._seen = {name: fingerprint(self._repository / name) for name in names}
        return names

    def look(self, control: Control) -> None:
        """Load the models that are new or changed since the last look, and unload those that are gone.

        Triton's own log says what cannot be loaded. A model that must not be served any more stays as it is.
        """
        try:
            names = self._servable()
        except ServerError as error:
            self._report(str(error))
            if not self._repository.is_dir():
                return  # a disk that is gone for a moment; an empty folder has no models any more
            names = []
        for name in names:
            now = fingerprint(self._repository / name)
            if now == self._seen.get(name):
                continue
            self._seen[name] = now
            try:
                control.load(name)
                logger.info("loaded %s", name)
            except ServerError as error:
                logger.info("cannot load: %s", error)
        for name in [name for name in self._seen if not (self._repository / name).exists()]:
            del self._seen[name]
            try:
                control.forget(name)
                logger.info("unloaded %s, whose folder is gone", name)
            except ServerError as error:
                logger.info("cannot unload: %s", error)

    def _servable(self) -> list[str]:
        contents = read_repository(self._repository)
        self._reported &= set(contents.faults.values())  # a fault that comes back is reported again
        for line in contents.faults.values():
            self._report(line)
        return list(contents.configs)

    def _report(self, line: str) -> None:
        if line not in self._reported:
            self._reported.add(line)
            self._on_error(line)


@contextmanager
def watching(watcher: RepositoryWatcher, control: Control, seconds: float) -> Iterator[None]:
    """Look every `seconds` seconds in a thread while the block runs."""
    ended = threading.Event()

    def look_until_ended() -> None:
        while not ended.wait(seconds):
            watcher.look(control)

    threading.Thread(target=look_until_ended, name="repository-watcher", daemon=True).start()
    try:
        yield
    finally:
        ended.set()  # a load in progress ends with Triton


def fingerprint(folder: Path) -> Fingerprint:
    """Return the `Fingerprint` of a model's folder; links are followed, and files that vanish are left out."""
    found = set()
    for version in [folder, *(entry for entry in _entries(folder) if entry.name.isdecimal())]:
        for root, folders, files in os.walk(version):
            if version == folder:
                folders.clear()
            for name in files:
                with suppress(OSError):
                    path = Path(root, name)
                    status = path.stat()
                    found.add((str(path), status.st_ino, status.st_size, status.st_mtime_ns))
    return frozenset(found)


def _entries(folder: Path) -> list[Path]:
    with suppress(OSError):
        return list(folder.iterdir())
    return []
