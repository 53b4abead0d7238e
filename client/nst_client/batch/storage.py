"""A folder on a disk or in object storage, through fsspec: which files it has, and writing them whole."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from nst_core.errors import InputError, WriteError

OWN = ".nst-batch"
"""The folder below an output in which its files are begun; in the output, so that a rename stays in one file system."""

_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "memory"}
"""Protocols whose objects appear whole by themselves. They have no rename: fsspec would copy and delete."""


@dataclass(frozen=True)
class Folder:
    """A folder by its path or URL; every path that its methods take or give is below it, with `/`.

    `file_system` is fsspec's and goes to other processes with it. Third-party file systems raise whatever they like, so
    each method turns any exception into one of ours.
    """

    url: str
    file_system: Any
    root: str

    @classmethod
    def at(cls, url: str) -> Folder:
        """Raises `InputError` for a URL of an unknown kind, or one whose package is not installed."""
        try:
            # A listing that is remembered would hold every name a second time, and know nothing of other runs.
            file_system, root = url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:  # fsspec says "Install s3fs to access S3"
            raise InputError(f"{url}: {error}") from error
        return cls(url, file_system, root.rstrip("/"))

    @property
    def local(self) -> bool:
        """Whether it is on this machine's disks."""
        return isinstance(self.file_system, LocalFileSystem)

    def contains(self, other: Folder) -> bool:
        """Whether the other is this one or below it."""
        same = self.file_system == other.file_system
        return same and (other.root == self.root or other.root.startswith(f"{self.root}/"))

    def folders(self) -> Iterator[tuple[str, list[str]]]:
        """Each folder below this one, itself first as "", with the sorted names of its files.

        Hidden ones are passed over. A link to a folder elsewhere is followed, once; one to a folder below this one is
        not, since that is found by itself. Raises `InputError` where one cannot be listed.
        """
        starts, followed = [self.root], {os.path.realpath(self.root)}
        try:
            for start in starts:
                for path, folders, files in self.file_system.walk(start, detail=True, on_error="raise"):
                    for name, info in [*folders.items(), *files.items()]:
                        link = self.local and info.get("islink") and Path(path, name).is_dir()
                        if link and not name.startswith(".") and self._leads_out(Path(path, name), followed):
                            starts.append(f"{path}/{name}")
                        if link or name.startswith("."):
                            folders.pop(name, None)
                            files.pop(name, None)
                    below = path.rstrip("/").removeprefix(self.root).strip("/")
                    yield below, sorted(filter(None, files))
        except FileNotFoundError as error:
            raise InputError(f"{self.url}: no such folder") from error
        except NotADirectoryError as error:
            raise InputError(f"{self.url} is no folder") from error
        except Exception as error:
            raise InputError(f"cannot list {self.url}: {_said(error)}") from error

    def names(self, below: str) -> set[str]:
        """What is in a folder; nothing if there is no such folder. Raises `InputError`."""
        try:
            return {path.rstrip("/").rpartition("/")[2] for path in self.file_system.ls(self._at(below), detail=False)}
        except FileNotFoundError:
            return set()
        except Exception as error:
            raise InputError(f"cannot list {self.url}: {_said(error)}") from error

    def read(self, below: str) -> bytes:
        """A file's bytes. Raises `InputError`."""
        try:
            data: bytes = self.file_system.cat_file(self._at(below))
            return data
        except Exception as error:
            raise InputError(f"{below}: cannot be read: {_said(error)}") from error

    def open(self, below: str) -> BinaryIO:
        """A file to read and to seek in. Raises `OSError`, or what its file system raises."""
        file: BinaryIO = self.file_system.open(self._at(below), "rb")
        return file

    def on_disk(self, below: str) -> Path | None:
        """The path of a file, if it is on this machine's disks."""
        return Path(self._at(below)) if self.local else None

    def write(self, below: str, data: bytes) -> None:
        """A file that appears whole or not at all: written beside and renamed, or put as one object.

        Raises `WriteError`.
        """
        target = self._at(below)
        try:
            if self._whole:
                self.file_system.pipe_file(target, data)
                return
            beside = self._at(f"{OWN}/beside/{secrets.token_hex(8)}{PurePosixPath(below).suffix}")
            self._put(beside, data)
            try:
                self.file_system.mv(beside, target)
            except FileNotFoundError:
                self.file_system.makedirs(target.rpartition("/")[0], exist_ok=True)
                self.file_system.mv(beside, target)
        except Exception as error:
            raise WriteError(f"cannot write {below} in {self.url}: {_said(error)}") from error

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder of this machine for what becomes a file here; `sweep` removes what a killed run left of it."""
        beside = self.on_disk(f"{OWN}/beside")
        with TemporaryDirectory(prefix="nst-", dir=beside, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def fetch(self, below: str, file: Path) -> None:
        """Copy a file to this machine. Raises `InputError`."""
        try:
            self.file_system.get_file(self._at(below), str(file))
        except Exception as error:
            raise InputError(f"{below}: cannot be read: {_said(error)}") from error

    def put(self, file: Path, below: str) -> None:
        """A file of this machine's, from `scratch`, that appears whole or not at all. Raises `WriteError`."""
        target = self._at(below)
        try:
            if self._whole:
                self.file_system.put_file(str(file), target)
                return
            if self.local:
                with file.open("rb+") as written:
                    os.fsync(written.fileno())
                beside = str(file)
            else:
                beside = self._at(f"{OWN}/beside/{secrets.token_hex(8)}{PurePosixPath(below).suffix}")
                self.file_system.put_file(str(file), beside)
            self.file_system.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.file_system.mv(beside, target)
        except Exception as error:
            raise WriteError(f"cannot write {below} in {self.url}: {_said(error)}") from error

    def remove(self, below: str) -> None:
        """A folder and all that is in it. Raises `WriteError`."""
        try:
            self.file_system.rm(self._at(below), recursive=True)
        except Exception as error:
            raise WriteError(f"cannot remove {below} in {self.url}: {_said(error)}") from error

    def prepare(self) -> None:
        """Make the folder for what is begun, and empty it of what a killed run left there. Raises `WriteError`."""
        if self._whole:
            return
        try:
            self.sweep()
            self.file_system.makedirs(self._at(f"{OWN}/beside"), exist_ok=True)
        except Exception as error:
            raise WriteError(f"cannot write in {self.url}: {_said(error)}") from error

    def sweep(self) -> None:
        """Remove what was begun and never ended."""
        if not self._whole and self.file_system.exists(self._at(f"{OWN}/beside")):
            self.file_system.rm(self._at(f"{OWN}/beside"), recursive=True)

    def _leads_out(self, link: Path, followed: set[str]) -> bool:
        """Whether a link leads to a folder of this machine that no walk has come to, and that none will."""
        target, root = os.path.realpath(link), os.path.realpath(self.root)
        if target in followed or target.startswith(f"{root}/"):
            return False
        followed.add(target)
        return True

    @property
    def _whole(self) -> bool:
        protocol = self.file_system.protocol
        return not _WHOLE.isdisjoint((protocol,) if isinstance(protocol, str) else protocol)

    def _at(self, below: str) -> str:
        return f"{self.root}/{below}" if below else self.root

    def _put(self, path: str, data: bytes) -> None:
        if not self.local:
            self.file_system.pipe_file(path, data)
            return
        with self.file_system.open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.f.fileno())  # or a file that a power cut left empty would count as painted


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
