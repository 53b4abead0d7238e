"""Main memory in place of a GPU's, with the interface of `nst_core.engines.cuda`."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from nst_core.engines.cuda import CudaError


class HostCuda:
    """A device of `total` bytes. Copies back happen when the stream is waited for, as late as on a real device."""

    def __init__(self, total: int = 1 << 30) -> None:
        self.total, self.taken = total, 0
        self.used: list[int] = []
        self.pinned = 0
        outer = self

        class Stream:
            handle = 0

            def __init__(self) -> None:
                self.pending: list[Callable[[], Any]] = []
                self.closed = False

            def synchronize(self) -> None:
                for copy in self.pending:
                    copy()
                self.pending.clear()

            def close(self) -> None:
                self.closed = True

        class DeviceMemory:
            def __init__(self, size: int) -> None:
                if size > outer.free_memory():
                    raise CudaError("cudaErrorMemoryAllocation: out of memory")
                self.size = size
                self._memory: Any = (ctypes.c_uint8 * max(size, 1))()
                self.pointer = ctypes.addressof(self._memory)
                outer.taken += size

            def close(self) -> None:
                if self._memory is not None:
                    outer.taken -= self.size
                self._memory = None

        class PinnedMemory:
            def __init__(self, size: int) -> None:
                self.size = size
                self.array = np.full(size, 77, np.uint8)  # not zero, which a test could take for a result
                self.pointer = self.array.ctypes.data
                outer.pinned += size

            def close(self) -> None:
                outer.pinned -= self.size

        self.Stream, self.DeviceMemory, self.PinnedMemory = Stream, DeviceMemory, PinnedMemory

    def use(self, device: int) -> None:
        self.used.append(device)

    def free_memory(self) -> int:
        return self.total - self.taken

    def to_device(self, target: int, source: int, size: int, stream: Any) -> None:
        ctypes.memmove(target, source, size)

    def to_host(self, target: int, source: int, size: int, stream: Any) -> None:
        stream.pending.append(lambda: ctypes.memmove(target, source, size))
