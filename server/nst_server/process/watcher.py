"""New versions, new models and removed ones under a running Triton: found by looking, and loaded by asking.

Triton can look for itself, and then loads whatever it finds. Here a model is checked first, and what was unloaded by
command stays so until its files change.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nst_server.control import Control
from nst_server.errors import ServerError
from nst_server.repository.models import find

Fingerprint = frozenset[tuple[str, int, int, int]]
"""Of each file of a model: its path, inode, size and time of change."""


class Watch:
    """What was last seen of a repository; `say` is told a line for each model that must not be served, once."""

    def __init__(self, repository: Path, say: Callable[[str], None]) -> None:
        self._repository = repository
        self._say = say
        self._seen: dict[str, Fingerprint] = {}
        self._told: set[str] = set()

    def names(self) -> list[str]:
        """The models that can be served now; what they look like counts as loaded."""
        names = self._good()
        self._seen = {name: fingerprint(self._repository / name) for name in names}
        return names

    def look(self, control: Control) -> None:
        """Have Triton load the models that are new or changed since, and unload those that are gone.

        Triton's own log says what cannot be loaded. A model that must not be served any more stays as it is.
        """
        try:
            names = self._good()
        except ServerError as error:
            self._tell(str(error))
            if not self._repository.is_dir():
                return  # a disk that is away for a moment; an empty folder has no models any more
            names = []
        for name in names:
            now = fingerprint(self._repository / name)
            if now == self._seen.get(name):
                continue
            self._seen[name] = now
            with suppress(ServerError):
                control.load(name)
        for name in [name for name in self._seen if not (self._repository / name).exists()]:
            del self._seen[name]
            with suppress(ServerError):
                control.forget(name)

    def _good(self) -> list[str]:
        found = find(self._repository)
        self._told &= set(found.faults.values())  # what is mended and broken again is told again
        for line in found.faults.values():
            self._tell(line)
        return list(found.configs)

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._say(line)


@contextmanager
def watched(watch: Watch, control: Control, seconds: float) -> Iterator[None]:
    """Look every so many seconds, in a thread, while the block runs."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            watch.look(control)

    threading.Thread(target=run, name="watch", daemon=True).start()
    try:
        yield
    finally:
        ended.set()  # a load under way ends with Triton


def fingerprint(folder: Path) -> Fingerprint:
    """See `Fingerprint`; links are followed, and files that vanish meanwhile are left out."""
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
