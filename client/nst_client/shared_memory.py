"""Memory that this process shares with a Triton on the same host: only the place of a picture is sent.

A region is registered with the server once and used for every request of its size class. It ends when the client
is closed or collected, or when this process ends.
"""

from __future__ import annotations

import os
import secrets
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.utils.shared_memory as triton

from nst_client.coroutines import pause
from nst_client.errors import Rejected, ServiceError
from nst_core.errors import InputError
from nst_core.images import Pixels

UNKNOWN, CLOSED, IN_USE = "Unable to find shared memory region", "Unable to open shared memory region", "in use"
"""How a server says that it does not know a region, cannot open one, or still works on it."""

KEPT = 16
"""Regions that wait for the next request of their size; the one that has waited longest ends."""

PATIENCE = 5.0
"""Seconds that `close` waits for a server that still works on a request that was given up."""


class Forgotten(Rejected):
    """The server does not know a region, since it was started again."""


class Unseen(Rejected):
    """The server does not take a region: it does not see this process's memory, or shares none."""


class NoRoom(InputError):
    """There is no memory left to share."""


@dataclass(eq=False)
class Region:
    """`size` bytes; `name` is what the server calls them, and their file's in /dev/shm."""

    name: str
    size: int
    handle: Any

    @classmethod
    def make(cls, size: int) -> Region:
        """Raises `NoRoom`."""
        name = f"nst-{os.getpid()}-{secrets.token_hex(6)}"
        try:
            region = cls(name, size, triton.create_shared_memory_region(name, f"/{name}", size, create_only=True))
        except triton.SharedMemoryException as error:
            raise _no_room(size) from error
        file = Path("/dev/shm") / name
        try:
            if file.exists():
                # It takes no room before it is written to, and writing without room would kill the process.
                with file.open("r+b") as opened:
                    os.posix_fallocate(opened.fileno(), 0, size)
        except OSError as error:
            region.end()
            raise _no_room(size) from error
        return region

    def write(self, pixels: Pixels) -> None:
        """Put pixels at its beginning."""
        triton.set_shared_memory_region(self.handle, [pixels])

    def read(self, offset: int, shape: Sequence[int]) -> Pixels:
        """A copy of the `uint8` array that lies at `offset`."""
        return np.array(triton.get_contents_as_numpy(self.handle, np.uint8, shape, offset))

    def end(self) -> None:
        """Give the memory back; a server that has it registered keeps its share until it forgets the region."""
        if self.handle is not None:
            triton.destroy_shared_memory_region(self.handle)
            self.handle = None


class Regions:
    """The regions of one client.

    `call` asks the server to `register` (name, key, bytes) or `unregister` (name) one in some seconds. `clean` has it
    forget those, by name, that are left when nobody closed the client and it is collected, or this process ends; it
    must not hold the client.
    """

    def __init__(self, call: Callable[..., Awaitable[None]], clean: Callable[[list[str]], None], *, aio: bool) -> None:
        self._call, self._aio = call, aio
        self._known: dict[str, Region] = {}
        self._free: list[Region] = []
        self._given_up: list[Region] = []
        weakref.finalize(self, _end_all, self._known, clean, os.getpid())

    @asynccontextmanager
    async def lease(self, size: int, seconds: float) -> AsyncIterator[Region]:
        """A region of `size` bytes or more for one request; a new one may take so many seconds."""
        region = await self._take(size_class(size), seconds)
        try:
            yield region
        except Rejected:
            self._free.append(region)
            raise
        except BaseException:
            self._give_up(region)  # the server may still work on the request, and write to it later
            raise
        self._free.append(region)

    async def register(self, region: Region, seconds: float) -> None:
        """Raises `Unseen`."""
        try:
            await self._call("register", region.name, f"/{region.name}", region.size, seconds=seconds)
        except Rejected as error:
            if CLOSED in str(error):
                raise Unseen(
                    "the server does not see this process's shared memory: it runs elsewhere, or in a container "
                    "(docker run --ipc=host shares it); else leave shared_memory out"
                ) from error
            raise Unseen(str(error)) from error

    async def close(self) -> None:
        """End all, and have the server forget them; one that it still works on is waited for a while."""
        while self._free:
            self._give_up(self._free.pop())
        deadline = time.monotonic() + PATIENCE
        while await self._forget(PATIENCE) and time.monotonic() < deadline:
            await pause(0.1, aio=self._aio)

    async def _take(self, size: int, seconds: float) -> Region:
        for region in reversed(self._free):
            if region.size == size:
                self._free.remove(region)
                return region
        while len(self._free) >= KEPT:
            self._give_up(self._free.pop(0))
        region = Region.make(size)
        self._known[region.name] = region
        try:
            await self.register(region, seconds)
            await self._forget(seconds)
        except BaseException:
            self._give_up(region)
            raise
        return region

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
            if region in self._given_up:  # another task may have been here
                self._given_up.remove(region)
                del self._known[region.name]
        return busy


def size_class(size: int) -> int:
    """`size` bytes rounded up by an eighth at most, in whole pages, so that few classes hold all sizes."""
    step = max(4096, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step


def _end_all(known: dict[str, Region], clean: Callable[[list[str]], None], owner: int) -> None:
    if not known or os.getpid() != owner:  # a forked child has them too, and they are not its own
        return
    for region in known.values():
        region.end()
    with suppress(ServiceError):
        clean(list(known))


def _no_room(size: int) -> NoRoom:
    return NoRoom(
        f"shared memory has no room for {size / 2**20:.0f} MiB: enlarge /dev/shm (docker run --shm-size), "
        "or leave shared_memory out"
    )
