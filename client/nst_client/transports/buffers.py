"""Arrays for results, of memory that results before them have left.

A fresh megabyte costs more than the copy into it: the system clears its pages one by one on first touch. The
allocator of the caller's process is none of a library's business, so results have a pool of their own: a block goes
back to it when the array, and everything that looks into it, is gone.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

LIMIT = 128 * 2**20
"""Bytes of blocks that wait for the next result, at most; what the caller still holds does not count."""

SMALL = 128 * 2**10
"""Bytes; below that the allocator of every system uses memory again by itself."""


class Block:
    """`size` bytes of main memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = np.empty(size, np.uint8)


class BufferPool:
    """Blocks of memory, at most `limit` bytes of which wait for their next use.

    For any number of threads. A block may come back in the middle of anything, also of a call of this pool, when the
    garbage collector finds it, and a fork may happen while another thread is here. So nobody ever waits for the pool:
    a block that comes while it is busy is freed, and whoever asks then gets a new one.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._free: list[Block] = []
        """The one that has waited longest comes first."""
        self._lock = threading.Lock()

    def take(self, size: int) -> Block:
        """A block of `size` bytes, rounded up to a size class; its content is anything."""
        size = size_class(size)
        if self._lock.acquire(blocking=False):
            try:
                for place in reversed(range(len(self._free))):
                    if self._free[place].size == size:
                        return self._free.pop(place)
            finally:
                self._lock.release()
        return Block(size)

    def give(self, block: Block) -> None:
        """Keep a block for the next one who asks; those that have waited longest are freed beyond the limit."""
        dropped = []  # freed after the lock
        if self._lock.acquire(blocking=False):
            try:
                self._free.append(block)
                while self.held > self._limit:
                    dropped.append(self._free.pop(0))
            finally:
                self._lock.release()

    @property
    def held(self) -> int:
        """Bytes that wait for their next use."""
        return sum(block.size for block in self._free)


class _Owner:
    """What an array's `base` is. NumPy keeps it as long as the array or any view of it lives."""

    def __init__(self, pool: BufferPool, shape: tuple[int, ...], kind: np.dtype[Any]) -> None:
        self._pool, self._block = pool, pool.take(prod(shape) * kind.itemsize)
        address = self._block.memory.ctypes.data
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": kind.str, "data": (address, False)}

    def __del__(self) -> None:
        if (block := self.__dict__.pop("_block", None)) is not None:
            self._pool.give(block)


_pool = BufferPool()


def empty(shape: Sequence[int], kind: npt.DTypeLike = np.uint8, pool: BufferPool = _pool) -> npt.NDArray[Any]:
    """As `numpy.empty`: a writable array of this shape and type, whose content is anything."""
    dtype, shape = np.dtype(kind), tuple(shape)
    if prod(shape) * dtype.itemsize < SMALL:
        return np.empty(shape, dtype)
    return np.asarray(_Owner(pool, shape, dtype))


def copied(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy that is the caller's own."""
    copy = empty(values.shape, values.dtype)
    np.copyto(copy, values)
    return copy


def size_class(size: int) -> int:
    """`size` bytes rounded up by an eighth at most, in whole pages, so that few classes hold all sizes."""
    step = max(4096, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step
