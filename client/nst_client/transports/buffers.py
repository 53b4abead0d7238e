"""Arrays for results, in the memory of earlier results.

A fresh megabyte costs more than the copy into it: the system clears each page on first touch. A library must leave the
process's allocator alone, so results have a pool of their own: a block returns to it when the array, and every view of
it, is gone.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_IDLE_BYTES = 128 * 2**20
"""Maximum of blocks that wait for the next result; arrays that the caller still holds do not count."""

MIN_BYTES = 128 * 2**10
"""Smaller arrays come from the allocator, which reuses their memory by itself."""


class Block:
    """`size` bytes of main memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = np.empty(size, np.uint8)


class BufferPool:
    """Blocks of memory for any number of threads, of which at most `limit` bytes are idle.

    The garbage collector may return a block at any time, also during a call of this pool, and a fork may happen while
    another thread is here. So nothing ever waits for the pool's lock: while it is taken, a block that returns is
    freed, and a caller gets a new block.
    """

    def __init__(self, limit: int = MAX_IDLE_BYTES) -> None:
        self._limit = limit
        self._free: list[Block] = []
        """The longest idle first."""
        self.lock = threading.Lock()

    def take(self, size: int) -> Block:
        """A block of `size` bytes, rounded up to a size class, with arbitrary content."""
        size = size_class(size)
        if self.lock.acquire(blocking=False):
            try:
                for index in reversed(range(len(self._free))):
                    if self._free[index].size == size:
                        return self._free.pop(index)
            finally:
                self.lock.release()
        return Block(size)

    def give(self, block: Block) -> None:
        """Return a block. Beyond the limit, the longest idle blocks are freed."""
        dropped = []  # freed after the lock is released
        if self.lock.acquire(blocking=False):
            try:
                self._free.append(block)
                while self.held > self._limit:
                    dropped.append(self._free.pop(0))
            finally:
                self.lock.release()

    @property
    def held(self) -> int:
        """Idle bytes."""
        return sum(block.size for block in self._free)


class _Owner:
    """The `base` of an array. NumPy keeps it as long as the array or any view of it exists."""

    def __init__(self, pool: BufferPool, shape: tuple[int, ...], kind: np.dtype[Any]) -> None:
        self._pool, self._block = pool, pool.take(prod(shape) * kind.itemsize)
        address = self._block.memory.ctypes.data
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": kind.str, "data": (address, False)}

    def __del__(self) -> None:
        if (block := self.__dict__.pop("_block", None)) is not None:
            self._pool.give(block)


_pool = BufferPool()


def empty(shape: Sequence[int], kind: npt.DTypeLike = np.uint8, pool: BufferPool = _pool) -> npt.NDArray[Any]:
    """As `numpy.empty`: a writable array of this shape and type with arbitrary content."""
    dtype, shape = np.dtype(kind), tuple(shape)
    if prod(shape) * dtype.itemsize < MIN_BYTES:
        return np.empty(shape, dtype)
    return np.asarray(_Owner(pool, shape, dtype))


def copied(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy that the caller owns."""
    copy = empty(values.shape, values.dtype)
    np.copyto(copy, values)
    return copy


def size_class(size: int) -> int:
    """`size` bytes rounded up by at most an eighth, to whole pages, so that there are few classes."""
    step = max(4096, 1 << max(0, size.bit_length() - 4))
    return ceil(size / step) * step
