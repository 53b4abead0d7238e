"""Arrays for results that reuse the memory of earlier results.

Allocating a megabyte takes longer than copying into it, since the system clears each page on first touch. A library
must leave the process's allocator alone, so results have a pool of their own: a block returns to it when the array
and all its views are gone.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_IDLE_BYTES = 128 * 2**20
"""Maximum bytes of idle blocks; arrays that the caller still holds do not count."""

MIN_BYTES = 128 * 2**10
"""Minimum size of a pooled array; the allocator itself reuses the memory of smaller ones."""


class Block:
    """`size` bytes of main memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = np.empty(size, np.uint8)


class BufferPool:
    """Blocks of memory for any number of threads, of which at most `limit` bytes are idle.

    The garbage collector may return a block at any time, even during a call of this pool, and the process may fork
    while another thread is here. So nothing waits for the pool's lock: while it is held, returned blocks are freed
    and callers get new blocks.
    """

    def __init__(self, limit: int = MAX_IDLE_BYTES) -> None:
        self._limit = limit
        self._free: list[Block] = []
        """Idle blocks, the longest idle first."""
        self.lock = threading.Lock()

    def take(self, size: int) -> Block:
        """Take a block of `size` bytes, rounded up to a size class, with arbitrary content."""
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
        """Give a block back. Beyond the limit, the longest idle blocks are freed."""
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
    """The `base` of an array, which NumPy keeps as long as the array or any view of it exists."""

    def __init__(self, pool: BufferPool, shape: tuple[int, ...], kind: np.dtype[Any]) -> None:
        self._pool, self._block = pool, pool.take(prod(shape) * kind.itemsize)
        address = self._block.memory.ctypes.data
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": kind.str, "data": (address, False)}

    def __del__(self) -> None:
        if (block := self.__dict__.pop("_block", None)) is not None:
            self._pool.give(block)


_pool = BufferPool()


def empty(shape: Sequence[int], kind: npt.DTypeLike = np.uint8, pool: BufferPool = _pool) -> npt.NDArray[Any]:
    """Return a writable array with arbitrary content, as `numpy.empty` does."""
    dtype, shape = np.dtype(kind), tuple(shape)
    if prod(shape) * dtype.itemsize < MIN_BYTES:
        return np.empty(shape, dtype)
    return np.asarray(_Owner(pool, shape, dtype))


def copied(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a copy that the caller owns."""
    copy = empty(values.shape, values.dtype)
    np.copyto(copy, values)
    return copy


def size_class(size: int) -> int:
    """Round `size` (bytes) up to whole pages, by at most an eighth, so that there are few size classes."""
    step = max(4096, 1 << max(0, size.bit_length() - 4))
    return ceil(size / step) * step
