"""A pool of pinned memory for images on their way to and from a GPU."""

from __future__ import annotations

import ctypes
import math
import weakref
from typing import Any

import numpy as np

PINNED_LIMIT_BYTES = 256 << 20
"""Maximum pinned memory of a pool; beyond it, ordinary memory is used, which is slower."""


class PinnedPool:
    """Arrays in pinned memory, which is reused once nothing refers to an array."""

    def __init__(self, cuda: Any, limit: int = PINNED_LIMIT_BYTES) -> None:
        """Create an empty pool of at most `limit` pinned bytes."""
        self._cuda, self._limit = cuda, limit
        self._free: dict[int, list[Any]] = {}  # blocks by their size, a power of two
        self._size = 0

    def array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return an uninitialized array; it is in ordinary memory when the pool is at its limit."""
        needed = math.prod(shape) * dtype.itemsize
        size = 1 << max(12, (needed - 1).bit_length())
        blocks = self._free.setdefault(size, [])
        if not blocks and not self._fits(size):
            return np.empty(shape, dtype)
        block = blocks.pop() if blocks else self._new(size)
        buffer = (ctypes.c_uint8 * size).from_address(block.pointer)
        weakref.finalize(buffer, blocks.append, block).atexit = False
        return np.frombuffer(memoryview(buffer), np.uint8, needed).view(dtype).reshape(shape)

    def close(self) -> None:
        """Unpin all unused blocks."""
        for size in self._free:
            self._unpin(size, 0)

    def _new(self, size: int) -> Any:
        self._size += size
        return self._cuda.PinnedMemory(size)

    def _fits(self, size: int) -> bool:
        """Return whether another block may be pinned; unpin unused blocks of other sizes for it."""
        for other in self._free:
            self._unpin(other, self._limit - size)
        return self._size + size <= self._limit

    def _unpin(self, size: int, limit: int) -> None:
        """Unpin unused blocks of a size while more than `limit` bytes are pinned."""
        blocks = self._free[size]
        while blocks and self._size > limit:
            blocks.pop().close()
            self._size -= size
