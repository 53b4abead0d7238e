"""Folders on disk or in object storage, through fsspec: list files, and write them atomically."""

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

OWN_FOLDER = ".nst-batch"
"""The hidden folder of unfinished files, inside the output so that renames stay in one file system."""

_ATOMIC_PROTOCOLS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "memory"}
"""Protocols whose writes are atomic. They have no rename: fsspec would copy and delete."""


@dataclass(frozen=True)
class Folder:
    """A folder by its path or URL. All paths in its methods are relative to it, with `/`.

    `file_system` is fsspec's, and is pickled with the folder. Third-party file systems may raise any exception, so
    each method turns all exceptions into ours.
    """

    url: str
    file_system: Any
    root: str

    @classmethod
    def at(cls, url: str) -> Folder:
        """Open a path or URL. Raises `InputError` for an unknown scheme or a missing package."""
        try:
            # A cached listing would store every name a second time, and miss the files of other runs.
            file_system, root = url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:  # fsspec says "Install s3fs to access S3"
            raise InputError(f"{url}: {error}") from error
        return cls(url, file_system, root.rstrip("/"))

    @property
    def local(self) -> bool:
        """Whether the folder is on this machine's disks."""
        return isinstance(self.file_system, LocalFileSystem)

    def contains(self, other: Folder) -> bool:
        """Return whether the other folder is this one or inside it."""
        same = self.file_system == other.file_system
        return same and (other.root == self.root or other.root.startswith(f"{self.root}/"))

    def folders(self) -> Iterator[tuple[str, list[str]]]:
        """Yield this folder as "" and every folder inside it, each with the sorted names of its files.

        Hidden files and folders are skipped. A link to a folder elsewhere is followed once; a link to a folder inside
        this one is not, since that is listed anyway. Raises `InputError` if a folder cannot be listed.
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
            raise InputError(f"{self.url}: no such folder; check INPUT") from error
        except NotADirectoryError as error:
            raise InputError(f"{self.url} is not a folder; check INPUT") from error
        except Exception as error:
            raise InputError(f"cannot list {self.url}: {_message(error)}") from error

    def names(self, below: str) -> set[str]:
        """Return the names in a folder, empty if it does not exist. Raises `InputError`."""
        try:
            return {path.rstrip("/").rpartition("/")[2] for path in self.file_system.ls(self._at(below), detail=False)}
        except FileNotFoundError:
            return set()
        except Exception as error:
            raise InputError(f"cannot list {self.url}: {_message(error)}") from error

    def read(self, below: str) -> bytes:
        """Read a file. Raises `InputError`."""
        try:
            data: bytes = self.file_system.cat_file(self._at(below))
            return data
        except Exception as error:
            raise InputError(f"cannot read {below}: {_message(error)}") from error

    def open(self, below: str) -> BinaryIO:
        """Open a file for reading and seeking. Raises `OSError`, or what its file system raises."""
        file: BinaryIO = self.file_system.open(self._at(below), "rb")
        return file

    def on_disk(self, below: str) -> Path | None:
        """Return a file's path on this machine's disks, or None if it is elsewhere."""
        return Path(self._at(below)) if self.local else None

    def write(self, below: str, data: bytes) -> None:
        """Write a file atomically: rename it when complete, or write a single object. Raises `WriteError`."""
        target = self._at(below)
        try:
            if self._is_atomic:
                self.file_system.pipe_file(target, data)
                return
            unfinished = self._at(f"{OWN_FOLDER}/beside/{secrets.token_hex(8)}{PurePosixPath(below).suffix}")
            self._put(unfinished, data)
            try:
                self.file_system.mv(unfinished, target)
            except FileNotFoundError:
                self.file_system.makedirs(target.rpartition("/")[0], exist_ok=True)
                self.file_system.mv(unfinished, target)
        except Exception as error:
            raise WriteError(f"cannot write {below} in {self.url}: {_message(error)}") from error

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield a temporary folder on this machine for `put`; `sweep` removes what a killed run left."""
        parent = self.on_disk(f"{OWN_FOLDER}/beside")
        with TemporaryDirectory(prefix="nst-", dir=parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def fetch(self, below: str, file: Path) -> None:
        """Copy a file to this machine. Raises `InputError`."""
        try:
            self.file_system.get_file(self._at(below), str(file))
        except Exception as error:
            raise InputError(f"cannot read {below}: {_message(error)}") from error

    def put(self, file: Path, below: str) -> None:
        """Move a file from `scratch` into this folder atomically. Raises `WriteError`."""
        target = self._at(below)
        try:
            if self._is_atomic:
                self.file_system.put_file(str(file), target)
                return
            if self.local:
                with file.open("rb+") as written:
                    os.fsync(written.fileno())
                unfinished = str(file)
            else:
                unfinished = self._at(f"{OWN_FOLDER}/beside/{secrets.token_hex(8)}{PurePosixPath(below).suffix}")
                self.file_system.put_file(str(file), unfinished)
            self.file_system.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.file_system.mv(unfinished, target)
        except Exception as error:
            raise WriteError(f"cannot write {below} in {self.url}: {_message(error)}") from error

    def remove(self, below: str) -> None:
        """Remove a folder and everything in it. Raises `WriteError`."""
        try:
            self.file_system.rm(self._at(below), recursive=True)
        except Exception as error:
            raise WriteError(f"cannot remove {below} in {self.url}: {_message(error)}") from error

    def prepare(self) -> None:
        """Create the folder of unfinished files and remove those of a killed run. Raises `WriteError`."""
        if self._is_atomic:
            return
        try:
            self.sweep()
            self.file_system.makedirs(self._at(f"{OWN_FOLDER}/beside"), exist_ok=True)
        except Exception as error:
            raise WriteError(f"cannot write to {self.url}: {_message(error)}") from error

    def sweep(self) -> None:
        """Remove unfinished files."""
        if not self._is_atomic and self.file_system.exists(self._at(f"{OWN_FOLDER}/beside")):
            self.file_system.rm(self._at(f"{OWN_FOLDER}/beside"), recursive=True)

    def _leads_out(self, link: Path, followed: set[str]) -> bool:
        """Return whether a link leads to a folder on this machine that is not listed otherwise."""
        target, root = os.path.realpath(link), os.path.realpath(self.root)
        if target in followed or target.startswith(f"{root}/"):
            return False
        followed.add(target)
        return True

    @property
    def _is_atomic(self) -> bool:
        protocol = self.file_system.protocol
        return not _ATOMIC_PROTOCOLS.isdisjoint((protocol,) if isinstance(protocol, str) else protocol)

    def _at(self, below: str) -> str:
        return f"{self.root}/{below}" if below else self.root

    def _put(self, path: str, data: bytes) -> None:
        if not self.local:
            self.file_system.pipe_file(path, data)
            return
        with self.file_system.open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.f.fileno())  # otherwise a file that a power cut left empty would count as stylized


def _message(error: Exception) -> str:
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
