"""Memory shared with a Triton on the same host, so that a request contains only an image's location.

A region is registered with the server once and used for every request that fits into it. It is freed when the client
is closed or collected, or when this process ends.
"""

from __future__ import annotations

import mmap
import os
import re
import secrets
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nst_client.errors import Rejected, ServiceError
from nst_client.transports import buffers
from nst_client.transports.buffers import size_class
from nst_client.transports.coroutines import sleep
from nst_client.transports.triton.errors import NoRoom, UnknownRegion, UnusableRegion
from nst_core.images import Pixels

CANNOT_OPEN, IN_USE = "Unable to open shared memory region", "in use"
"""Triton's messages for a region that it cannot open, and for one that is still in use."""

FOLDER = Path("/dev/shm")
"""The folder of POSIX shared memory on Linux."""

MAX_IDLE_REGIONS = 16
"""Maximum regions to keep for the next request; beyond it the longest idle one is freed."""

MAX_BYTES = 256 * 2**20
"""Maximum bytes of idle regions, and of those that a client creates by default; one region may be larger."""

FREE_FRACTION = 4
"""By default a client takes at most a quarter of the free space in /dev/shm, which Triton's backends need too."""

CLOSE_SECONDS = 5.0
"""How long `close` waits for a server that is still working on an abandoned request."""


class Region(Protocol):
    """`size` bytes that the server knows as `name`; `kind` is Triton's API that registers them."""

    kind: str
    name: str
    size: int

    def explain_refusal(self, message: str) -> str:
        """Explain a server's refusal to register the region, and what to do."""

    def registration(self) -> Sequence[Any]:
        """Return the arguments, after the name, with which NVIDIA's client registers the region."""

    def registered(self) -> None:
        """Note that the server has registered the region."""

    def end(self) -> None:
        """Free the memory; a server that has registered it keeps its mapping until it unregisters the region."""


class Registry(Protocol):
    """The server's register of regions of one kind. Its methods raise `ServiceError`."""

    async def register(self, region: Region, seconds: float) -> None:
        """Register a region with the server."""

    async def unregister(self, name: str, seconds: float) -> None:
        """Unregister a region from the server."""

    async def names(self, seconds: float) -> list[str]:
        """Return the names of all regions that the server knows."""


class SystemRegion:
    """A `Region` in main memory."""

    kind = "system"

    def __init__(self, size: int, *, sparing: bool = False) -> None:
        """Allocate `size` bytes; with `sparing`, only if most of the free memory is left. Raises `NoRoom`."""
        self.name, self.size = new_name(), size
        self._file: Path | None = FOLDER / self.name
        try:
            free = os.statvfs(FOLDER)
            if sparing and size * FREE_FRACTION > free.f_bavail * free.f_frsize:
                raise _no_room(size)
            opened = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise _no_room(size, error) from error
        try:
            # A file takes no space until it is written to, and a write without space kills the process.
            os.posix_fallocate(opened, 0, size)
            self._memory = np.frombuffer(mmap.mmap(opened, size), np.uint8)
        except OSError as error:
            self.end()
            raise _no_room(size, error) from error
        finally:
            os.close(opened)

    def explain_refusal(self, message: str) -> str:
        """See `Region`."""
        if CANNOT_OPEN not in message:
            return message
        return (
            "the server does not see this process's shared memory, since it runs elsewhere or in a container; "
            "share it with docker run --ipc=host, or leave out shared_memory"
        )

    def registration(self) -> Sequence[Any]:
        """See `Region`."""
        return f"/{self.name}", self.size

    def registered(self) -> None:
        """Remove the file's name, so that the memory is freed with its last process, however that ends."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None

    def write(self, pixels: Pixels) -> None:
        """Copy pixels to the beginning."""
        np.copyto(self._memory[: pixels.nbytes].reshape(pixels.shape), pixels)

    def read(self, offset: int, template: Pixels) -> Pixels:
        """Return a copy of the pixels at `offset`, of the shape of `template`."""
        return buffers.copied(self._memory[offset : offset + template.nbytes].reshape(template.shape))

    def end(self) -> None:
        """See `Region`."""
        self.registered()
        self._memory = np.empty(0, np.uint8)


class RegionPool:
    """The regions of one client and one kind. `make` creates a region of a size in bytes, or raises `NoRoom`.

    `unregister_all` unregisters regions by name if nobody closes the client before it is collected or this process
    ends; it must not hold a reference to the client.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        registry: Registry,
        unregister_all: Callable[[list[str]], None],
        *,
        aio: bool,
        optional: bool = False,
    ) -> None:
        """Start without regions. With `optional` every failed registration is an `UnusableRegion`."""
        self._make, self._registry, self._unregister_all = make, registry, unregister_all
        self._aio, self._optional = aio, optional
        self._known: dict[str, Region] = {}
        self._free: list[Any] = []
        self._abandoned: list[Region] = []
        """Regions that are freed here, but still registered with the server."""
        self._largest = 0
        self._used = False
        """Whether the server has registered a region."""
        self._lock = threading.Lock()
        """Guards `_free` and `_abandoned`, since threads may share a client. Never held during a request."""

    def worthwhile(self, size: int) -> bool:
        """Return whether a request of `size` bytes has an idle region, or justifies a new one.

        A region costs more than it saves if it serves one request. So there is none for the first request, none for
        the first that is larger than all before, and no more than `MAX_IDLE_REGIONS` or `MAX_BYTES` at a time.
        """
        size = size_class(size)
        if any(region.size >= size for region in self._free):
            return True
        if size > self._largest:
            self._largest = size
            return False
        idle = {*self._free, *self._abandoned}
        busy = [region.size for region in list(self._known.values()) if region not in idle]
        return not busy or (len(busy) < MAX_IDLE_REGIONS and sum(busy) + size <= MAX_BYTES)

    @asynccontextmanager
    async def lease(self, size: int, seconds: float) -> AsyncIterator[Any]:
        """Lend a region of at least `size` bytes to one request; a new region is registered within `seconds`.

        Raises `NoRoom`, `UnusableRegion`, or `ServiceError`.
        """
        region = await self._take(size_class(size), seconds)
        try:
            yield region
        except UnknownRegion:
            self._drop(region)
            raise
        except Rejected:
            self._free.append(region)
            raise
        except BaseException:
            self._abandon(region)  # the server may still be working on the request, and write to the region later
            raise
        self._free.append(region)

    async def close(self) -> None:
        """Free and unregister all regions; wait a while for those that the server is still using."""
        with self._lock:
            idle, self._free = self._free, []
        for region in idle:
            self._abandon(region)
        deadline = time.monotonic() + CLOSE_SECONDS
        while await self._unregister_abandoned(CLOSE_SECONDS) and time.monotonic() < deadline:
            await sleep(0.1, aio=self._aio)

    async def _take(self, size: int, seconds: float) -> Any:
        with self._lock:
            fitting = [region for region in self._free if region.size >= size]
            if fitting:
                region = min(fitting, key=lambda free: free.size)
                self._free.remove(region)
                return region
            spare = []
            while self._free and self._is_full(size):
                spare.append(self._free.pop(0))
        for region in spare:
            self._abandon(region)
        region = self._make(size)
        self._known[region.name] = region
        try:
            await self._register(region, seconds)
            await self._unregister_abandoned(seconds)
        except BaseException:
            self._abandon(region)
            raise
        return region

    def _is_full(self, size: int) -> bool:
        """Return whether an idle region must be freed for a new one of `size` bytes."""
        return len(self._free) >= MAX_IDLE_REGIONS or sum(free.size for free in self._free) + size > MAX_BYTES

    async def _register(self, region: Region, seconds: float) -> None:
        """Register a region. Raises `UnusableRegion` or `ServiceError`."""
        try:
            await self._registry.register(region, seconds)
        except ServiceError as error:
            if not self._optional and not isinstance(error, Rejected):
                raise
            raise UnusableRegion(region.explain_refusal(str(error))) from error
        region.registered()
        if not self._used:
            self._used = True
            weakref.finalize(self, _end_all, self._known, self._unregister_all, os.getpid())
            await self._sweep(seconds)

    def _drop(self, region: Region) -> None:
        """Free a region that the server does not know."""
        region.end()
        self._known.pop(region.name, None)

    def _abandon(self, region: Region) -> None:
        region.end()
        self._abandoned.append(region)

    async def _unregister_abandoned(self, seconds: float) -> bool:
        """Unregister the abandoned regions; returns whether the server is still using any of them."""
        busy = False
        for region in list(self._abandoned):
            try:
                await self._registry.unregister(region.name, seconds)
            except Rejected as error:
                if IN_USE in str(error):
                    busy = True
                    continue
            except ServiceError:  # the server is gone
                return False
            with self._lock:
                if region in self._abandoned:  # another task or thread may have been here
                    self._abandoned.remove(region)
                    self._known.pop(region.name, None)
        return busy

    async def _sweep(self, seconds: float) -> None:
        """Unregister the regions of clients that were killed."""
        with suppress(ServiceError):
            for name in orphans(await self._registry.names(seconds)):
                with suppress(Rejected):  # it is still working on a request of the dead client
                    await self._registry.unregister(name, seconds)


def new_name() -> str:
    """Return a region's name that contains its process, and that nobody can guess."""
    return f"nst-{_namespace()}-{os.getpid()}-{secrets.token_hex(6)}"


def orphans(names: Iterable[str]) -> list[str]:
    """Return the regions whose process is gone; those of other containers are not recognised."""
    own = re.compile(rf"nst-{_namespace()}-(\d+)-[0-9a-f]+")
    return [name for name in names if (match := own.fullmatch(name)) and not _alive(int(match[1]))]


def _namespace() -> str:
    """Return the namespace of process numbers, which differs in a container; empty if the system has none."""
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _end_all(known: dict[str, Region], unregister_all: Callable[[list[str]], None], owner: int) -> None:
    if not known or os.getpid() != owner:  # a forked child has its parent's regions
        return
    for region in known.values():
        region.end()
    with suppress(ServiceError):
        unregister_all(list(known))


def _no_room(size: int, why: OSError | None = None) -> NoRoom:
    reason = f" ({why.strerror})" if why else ""
    return NoRoom(
        f"shared memory has no room for {size / 2**20:.0f} MiB{reason}; enlarge /dev/shm (docker run --shm-size), "
        "or leave out shared_memory"
    )
