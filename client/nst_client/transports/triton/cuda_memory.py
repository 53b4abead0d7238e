"""GPU memory shared with a Triton on the same machine, so that pixels never leave the GPU.

The server opens a region with CUDA's interprocess handle. Pixels are copied into it, and stylized pixels out of it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import ceil
from typing import Any

from nst_client.transports.cuda_pixels import CudaPixels, copy, current_device
from nst_client.transports.triton.shared_memory import new_name
from nst_core.engines import cuda

BLOCK_BYTES = 2 * 2**20
"""CUDA allocates in blocks of this size and shares whole blocks only."""


class CudaRegion:
    """A `Region` in a GPU's memory."""

    kind = "cuda"

    def __init__(self, size: int, *, device: int) -> None:
        """Allocate `size` bytes. Raises `InputError` if CUDA cannot allocate or share them."""
        self.name, self._device = new_name(), device
        self.size = ceil(size / BLOCK_BYTES) * BLOCK_BYTES
        with current_device(device):
            self._memory = cuda.DeviceMemory(self.size)
            handle = cuda.check(cuda.runtime().cudaIpcGetMemHandle(self._memory.pointer))
        self._handle = ctypes.string_at(handle.getPtr(), cuda.runtime().CUDA_IPC_HANDLE_SIZE)

    def explain_refusal(self, message: str) -> str:
        """See `Region`."""
        return (
            f"{message}; the server must use this GPU and see this process (docker run --ipc=host), or pass the "
            "pixels in main memory, such as tensor.cpu().numpy()"
        )

    def registration(self) -> Sequence[Any]:
        """See `Region`."""
        return self._handle, self._device, self.size

    def registered(self) -> None:
        """See `Region`."""

    def write(self, pixels: CudaPixels) -> None:
        """Copy pixels to the beginning."""
        copy(self._memory.pointer, pixels.pointer, pixels.nbytes, self._device)

    def read(self, offset: int, template: CudaPixels) -> CudaPixels:
        """Copy the pixels at `offset`; shape and library are those of `template`."""
        pixels = template.empty()
        copy(pixels.pointer, self._memory.pointer + offset, pixels.nbytes, self._device)
        return pixels

    def end(self) -> None:
        """See `Region`."""
        self._memory.close()
