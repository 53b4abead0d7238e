"""Memory that this process shares with a Triton on the same host: only the place of a picture is sent.

A region is registered with the server once and used for every request that fits into it. It ends when the client
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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nst_client.errors import Rejected, ServiceError
from nst_client.transports import buffers
from nst_client.transports.buffers import size_class
from nst_client.transports.coroutines import pause
from nst_core.errors import InputError
from nst_core.images import Pixels

UNKNOWN, CLOSED, IN_USE = "Unable to find shared memory region", "Unable to open shared memory region", "in use"
"""How a server says that it does not know a region, cannot open one, or still works on it."""

FOLDER = Path("/dev/shm")
"""Where POSIX shared memory lies on Linux."""

KEPT = 16
"""Regions that wait for the next request that fits; the one that has waited longest ends."""

LIMIT = 256 * 2**20
"""Bytes of regions, a single larger one aside, that wait, and that a client makes without being told to."""

SHARE = 4
"""A client that was not told to share takes this part of what /dev/shm has free: Triton's own backends need it too."""

PATIENCE = 5.0
"""Seconds that `close` waits for a server that still works on a request that was given up."""


class Forgotten(Rejected):
    """The server does not know a region, since it was started again, or since it is another one."""


class Unseen(Rejected):
    """The server does not take a region: it does not see this process's memory, or shares none."""


class NoRoom(InputError):
    """There is no memory left to share."""


class Region(Protocol):
    """`size` bytes that are called `name` at the server; `kind` is which of Triton's APIs registers them."""

    kind: str
    name: str
    size: int

    def unseen(self, said: str) -> str:
        """What there is to say of a server that does not register it, but says so."""

    def registration(self) -> Sequence[Any]:
        """What NVIDIA's client wants behind the name to register it."""

    def registered(self) -> None:
        """The server has it."""

    def end(self) -> None:
        """Give the memory back; a server that has it registered keeps its share until it forgets the region."""


class SystemRegion:
    """A `Region` of main memory."""

    kind = "system"

    def __init__(self, size: int, *, sparing: bool = False) -> None:
        """`sparing` leaves most of what is free to others. Raises `NoRoom`."""
        self.name, self.size = new_name(), size
        self._file: Path | None = FOLDER / self.name
        try:
            free = os.statvfs(FOLDER)
            if sparing and size * SHARE > free.f_bavail * free.f_frsize:
                raise _no_room(size)
            opened = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise _no_room(size, error) from error
        try:
            # A file takes no room before it is written to, and writing without room would kill the process.
            os.posix_fallocate(opened, 0, size)
            self._memory = np.frombuffer(mmap.mmap(opened, size), np.uint8)
        except OSError as error:
            self.end()
            raise _no_room(size, error) from error
        finally:
            os.close(opened)

    def unseen(self, said: str) -> str:
        """See `Region`."""
        if CLOSED not in said:
            return said
        return (
            "the server does not see this process's shared memory: it runs elsewhere, or in a container "
            "(docker run --ipc=host shares it); else leave shared_memory out"
        )

    def registration(self) -> Sequence[Any]:
        """See `Region`."""
        return f"/{self.name}", self.size

    def registered(self) -> None:
        """The file's name is not needed any more; without it the memory goes with its last process, however it ends."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None

    def write(self, pixels: Pixels) -> None:
        """Put pixels at its beginning."""
        np.copyto(self._memory[: pixels.nbytes].reshape(pixels.shape), pixels)

    def read(self, offset: int, picture: Pixels) -> Pixels:
        """A copy of what lies at `offset`, of the shape of `picture`."""
        return buffers.copied(self._memory[offset : offset + picture.nbytes].reshape(picture.shape))

    def end(self) -> None:
        """See `Region`."""
        self.registered()
        self._memory = np.empty(0, np.uint8)


class RegionPool:
    """The regions of one client, of one kind; `make` makes one of a size in bytes, or raises `NoRoom`.

    `call` asks the server to `register` a region, to `unregister` one by name, or for the names that are `listed`, in
    some seconds. `clean` has it forget those, by name, that are left when nobody closed the client and it is
    collected, or this process ends; it must not hold the client.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        call: Callable[..., Awaitable[Any]],
        clean: Callable[[list[str]], None],
        *,
        aio: bool,
        optional: bool = False,
    ) -> None:
        """With `optional` whatever fails as a region is registered is `Unseen`: the caller goes without."""
        self._make, self._call, self._clean, self._aio, self._optional = make, call, clean, aio, optional
        self._known: dict[str, Region] = {}
        self._free: list[Any] = []
        self._given_up: list[Region] = []
        self._largest = 0
        self._used = False
        """Whether the server has had a region."""
        self._lock = threading.Lock()
        """Of `_free` and `_given_up`: several threads may use a client. Never held while the server is asked."""

    def worthwhile(self, size: int) -> bool:
        """Whether a request of `size` bytes has a region at hand, or should have one made.

        A region costs more than it saves if it serves one request. So there is none for the first request, none for
        the first that is larger than all before, and no more than `KEPT` or of `LIMIT` bytes at a time.
        """
        size = size_class(size)
        if any(region.size >= size for region in self._free):
            return True
        if size > self._largest:
            self._largest = size
            return False
        idle = {*self._free, *self._given_up}
        busy = [region.size for region in list(self._known.values()) if region not in idle]
        return not busy or (len(busy) < KEPT and sum(busy) + size <= LIMIT)

    @asynccontextmanager
    async def lease(self, size: int, seconds: float) -> AsyncIterator[Any]:
        """A region of `size` bytes or more for one request; a new one may take so many seconds.

        Raises `NoRoom`, `Unseen`, or what `call` raises.
        """
        region = await self._take(size_class(size), seconds)
        try:
            yield region
        except Forgotten:
            self._drop(region)
            raise
        except Rejected:
            self._free.append(region)
            raise
        except BaseException:
            self._give_up(region)  # the server may still work on the request, and write to it later
            raise
        self._free.append(region)

    async def close(self) -> None:
        """End all, and have the server forget them; one that it still works on is waited for a while."""
        with self._lock:
            idle, self._free = self._free, []
        for region in idle:
            self._give_up(region)
        deadline = time.monotonic() + PATIENCE
        while await self._forget(PATIENCE) and time.monotonic() < deadline:
            await pause(0.1, aio=self._aio)

    async def _take(self, size: int, seconds: float) -> Any:
        with self._lock:
            fitting = [region for region in self._free if region.size >= size]
            if fitting:
                region = min(fitting, key=lambda free: free.size)
                self._free.remove(region)
                return region
            spare = []
            while self._free and (len(self._free) >= KEPT or sum(free.size for free in self._free) + size > LIMIT):
                spare.append(self._free.pop(0))
        for region in spare:
            self._give_up(region)
        region = self._make(size)
        self._known[region.name] = region
        try:
            await self._register(region, seconds)
            await self._forget(seconds)
        except BaseException:
            self._give_up(region)
            raise
        return region

    async def _register(self, region: Region, seconds: float) -> None:
        """Raises `Unseen`, or what `call` raises."""
        try:
            await self._call("register", region, seconds=seconds)
        except ServiceError as error:
            if not self._optional and not isinstance(error, Rejected):
                raise
            raise Unseen(region.unseen(str(error))) from error
        region.registered()
        if not self._used:
            self._used = True
            weakref.finalize(self, _end_all, self._known, self._clean, os.getpid())
            await self._sweep(seconds)

    def _drop(self, region: Region) -> None:
        """End a region that the server does not have."""
        region.end()
        self._known.pop(region.name, None)

    def _give_up(self, region: Region) -> None:
        region.end()
        self._given_up.append(region)

    async def _forget(self, seconds: float) -> bool:
        """Have the server forget the regions that were given up; whether it still works on one of them."""
        busy = False
        for region in list(self._given_up):
            try:
                await self._call("unregister", region.name, seconds=seconds)
            except Rejected as error:
                if IN_USE in str(error):
                    busy = True
                    continue
            except ServiceError:  # nobody is there to forget
                return False
            with self._lock:
                if region in self._given_up:  # another task or thread may have been here
                    self._given_up.remove(region)
                    self._known.pop(region.name, None)
        return busy

    async def _sweep(self, seconds: float) -> None:
        """Have the server forget the regions of clients that were killed; nobody else will."""
        with suppress(ServiceError):
            for name in orphans(await self._call("listed", seconds=seconds)):
                with suppress(Rejected):  # it still works on a request of the dead
                    await self._call("unregister", name, seconds=seconds)


def new_name() -> str:
    """Of a region: it tells whose it is, and nobody can guess it."""
    return f"nst-{_namespace()}-{os.getpid()}-{secrets.token_hex(6)}"


def orphans(names: Iterable[str]) -> list[str]:
    """The regions among these whose process is gone. Of processes in other containers nobody here knows."""
    own = re.compile(rf"nst-{_namespace()}-(\d+)-[0-9a-f]+")
    return [name for name in names if (match := own.fullmatch(name)) and not _alive(int(match[1]))]


def _namespace() -> str:
    """Of this process's number, which means another process in another container; empty where there are none."""
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _end_all(known: dict[str, Region], clean: Callable[[list[str]], None], owner: int) -> None:
    if not known or os.getpid() != owner:  # a forked child has them too, and they are not its own
        return
    for region in known.values():
        region.end()
    with suppress(ServiceError):
        clean(list(known))


def _no_room(size: int, why: OSError | None = None) -> NoRoom:
    reason = f" ({why.strerror})" if why else ""
    return NoRoom(
        f"shared memory has no room for {size / 2**20:.0f} MiB{reason}: enlarge /dev/shm (docker run --shm-size), "
        "or leave shared_memory out"
    )
