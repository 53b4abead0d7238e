"""Paths for Triton that every shell reads as they are, whatever the folders are called.

Triton 2.51 starts the process of a model with an unquoted command line of bash that contains the paths of the
repository and the backends, and the loader splits library paths at colons. So Triton gets a private folder with links
to them, in a place with a plain name.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nst_server.errors import ServerError

PLAIN = re.compile(r"[A-Za-z0-9_./+@-]+")
"""A path that bash, the loader and every locale read as it is."""

TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")
"""Places for the folder, if TMPDIR is not suitable."""

PREFIX = "nst-serve-"

MIN_AGE_SECONDS = 60.0
"""A younger folder may be about to be locked."""

OURS = re.compile(rf"[A-Za-z0-9_./+@-]*/{PREFIX}[A-Za-z0-9_]+/models")


@dataclass(frozen=True)
class Links:
    """A private folder with links to the model repository and to Triton's environment, if any."""

    folder: Path
    repository: Path
    environment: Path | None = None

    @property
    def models(self) -> Path:
        """The link to the repository."""
        return self.folder / "models"

    def command(self, arguments: list[str]) -> list[str]:
        """Replace the paths in Triton's command line by the links."""
        repository = f"--model-repository={self.repository.resolve()}"
        link = f"--model-repository={self.models}"
        return [link if argument == repository else self._inward(argument) for argument in arguments]

    def variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Replace the paths in environment variables by the links."""
        return {name: self._inward(value) for name, value in environment.items()}

    def _inward(self, text: str) -> str:
        if self.environment is None:
            return text
        # A variable may hold several paths separated by colons, and this path may contain a colon itself.
        path = re.escape(str(self.environment.resolve()))
        return re.sub(rf"{path}(?=[/:]|$)", str(self.folder / "environment"), text)

    def outward(self, text: str) -> str:
        """Replace the links in Triton's output by the user's paths."""
        text = text.replace(str(self.models), str(self.repository))
        return text.replace(str(self.folder / "environment"), str(self.environment)) if self.environment else text


@contextmanager
def linked(repository: Path, environment: Path | None) -> Iterator[Links]:
    """Keep the links while the block runs; first remove those of servers that were killed.

    Raises `ServerError` if there is no folder for temporary files.
    """
    folder = _private_folder()
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # systemd-tmpfiles, which removes old files, leaves a locked folder alone
        links = Links(folder, repository, environment)
        links.models.symlink_to(repository.absolute())
        if environment:
            (folder / "environment").symlink_to(environment.resolve())
        yield links
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def outward(text: str, repository: str) -> str:
    """Replace the links in a Triton's output by the repository's own path."""
    return OURS.sub(lambda _: repository, text)


def _private_folder() -> Path:
    for place in _places():
        _clear(place)
        with suppress(OSError):
            return Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    raise ServerError(
        "no writable folder for temporary files; set TMPDIR to a folder whose path has only letters, digits and /_.+@-"
    )


def _places() -> list[Path]:
    places = [os.environ.get("TMPDIR", ""), *TEMPORARY]
    return [Path(place) for place in places if place.startswith("/") and PLAIN.fullmatch(place)]


def _clear(place: Path) -> None:
    """Remove the folders of this user's servers that no process holds any more."""
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            status = folder.lstat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < MIN_AGE_SECONDS:
                continue
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(held)
