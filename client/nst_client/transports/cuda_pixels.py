"""Pixels in a GPU's memory, of any library with `__cuda_array_interface__` or DLPack's methods."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np

from nst_core.engines import cuda
from nst_core.engines.dlpack import DLTensor
from nst_core.errors import InputError, MissingExtra

DLPACK_CUDA_DEVICE = 2
"""DLPack's number for CUDA memory."""

_LEGACY_STREAM = 1


@dataclass(frozen=True)
class CudaPixels:
    """Contiguous pixels `uint8 [N, H, W, 3]` at `pointer` on GPU number `device`; `source` owns the memory.

    They have the attributes of an array that the client uses, and `__cuda_array_interface__` for applications.
    """

    source: Any
    pointer: int
    shape: tuple[int, ...]
    device: int

    dtype = np.dtype(np.uint8)

    @property
    def ndim(self) -> int:
        """The number of dimensions, 4 in a request."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return prod(self.shape)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": "|u1",
            "strides": None,
            "stream": None,
            "data": (self.pointer, False),
        }

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> CudaPixels:
        """Return images of the batch as a view of the same memory."""
        start, stop, _ = part.indices(len(self))
        image_bytes = prod(self.shape[1:])
        return CudaPixels(self.source, self.pointer + start * image_bytes, (stop - start, *self.shape[1:]), self.device)

    def __setitem__(self, part: slice, values: CudaPixels) -> None:
        target = self[part]
        copy(target.pointer, values.pointer, target.nbytes, self.device)

    def empty(self) -> CudaPixels:
        """Allocate memory for a result of this shape with the library of these pixels, ready to be written."""
        with current_device(self.device):
            library = _library(self.source)
            if library == "torch":
                memory = self.source.new_empty(self.shape)
            elif library == "cupy":
                memory = sys.modules[library].empty(self.shape, np.uint8)
            else:
                memory = cuda.DeviceMemory(self.nbytes)
                return CudaPixels(memory, memory.pointer, self.shape, self.device)
            # The library's own stream may still work on memory that its allocator hands out.
            interface = memory.__cuda_array_interface__
            _wait(memory, interface)
            return CudaPixels(memory, interface["data"][0], self.shape, self.device)


def pixels_on_gpu(value: Any) -> CudaPixels | None:
    """Return the pixels on a GPU of an object with `__cuda_array_interface__` or DLPack's methods; else None.

    Waits for the library's pending work on them. Raises `InputError` unless they are contiguous `uint8 [H, W, 3]` or
    `[N, H, W, 3]`, and `MissingExtra` without `cuda-bindings`.
    """
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is None and not _is_dlpack_of_gpu(value):
        return None
    try:
        cuda.runtime()
    except ModuleNotFoundError as error:
        raise MissingExtra("gpu", "cuda-bindings") from error
    found = _by_interface(value, interface) if interface is not None else _by_dlpack(value)
    if found.ndim == 3:
        found = CudaPixels(found.source, found.pointer, (1, *found.shape), found.device)
    return found


def like(content: Any, stylized: CudaPixels) -> Any:
    """Return a stylized batch as the content's kind of object: a PyTorch tensor, a CuPy array, or `CudaPixels`."""
    single = len(content.shape) == 3
    if _library(content) in ("torch", "cupy"):
        return stylized.source[0] if single else stylized.source
    shape = stylized.shape[1:] if single else stylized.shape
    return CudaPixels(stylized.source, stylized.pointer, shape, stylized.device)


def not_shared(address: str) -> InputError:
    """Return the error for pixels on a GPU and a server that cannot share its memory."""
    return InputError(
        f"pixels on a GPU need a single Triton on this machine that shares memory, and {address} is not one; "
        "pass them in main memory, such as tensor.cpu().numpy()"
    )


def copy(target: int, source: int, size: int, device: int) -> None:
    """Copy `size` bytes within a GPU and wait for the copy. Raises `InputError` with CUDA's message."""
    with current_device(device):
        stream, runtime = stream_of(device), cuda.runtime()
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        cuda.check(runtime.cudaMemcpyAsync(target, source, size, kind, stream.handle))
        stream.synchronize()


@cache
def stream_of(device: int) -> cuda.Stream:
    """Return the stream of all copies on a GPU, which must be the current device."""
    return cuda.Stream()


@contextmanager
def current_device(device: int) -> Iterator[None]:
    """Make a GPU this thread's current device in the block. Raises `InputError` with CUDA's message."""
    try:
        before = cuda.check(cuda.runtime().cudaGetDevice())
        cuda.use(device)
        try:
            yield
        finally:
            cuda.use(before)
    except cuda.CudaError as error:
        raise InputError(f"GPU {device} failed: {error}") from error


def _library(value: Any) -> str:
    """Return the name of the package that defines an object's class."""
    return type(value).__module__.partition(".")[0]


def _by_interface(value: Any, interface: dict[str, Any]) -> CudaPixels:
    shape, strides = tuple(interface["shape"]), interface.get("strides")
    _check(shape, interface["typestr"] == "|u1", interface["typestr"], strides)
    pointer = interface["data"][0]
    with current_device(0):
        device = int(cuda.check(cuda.runtime().cudaPointerGetAttributes(pointer)).device)
    with current_device(device):
        _wait(value, interface)
    return CudaPixels(value, pointer, shape, device)


def _wait(value: Any, interface: dict[str, Any]) -> None:
    """Wait for the pending work of the object's library on its own stream."""
    runtime = cuda.runtime()
    if _library(value) == "torch":  # its version of the interface does not name the stream
        stream = sys.modules["torch"].cuda.current_stream(value.device).cuda_stream or _LEGACY_STREAM
    elif interface.get("version", 0) < 3:
        cuda.check(runtime.cudaDeviceSynchronize())
        return
    else:
        stream = interface.get("stream")
    if stream is not None:
        cuda.check(runtime.cudaStreamSynchronize(stream))


def _is_dlpack_of_gpu(value: Any) -> bool:
    device = getattr(value, "__dlpack_device__", None)
    return device is not None and device()[0] == DLPACK_CUDA_DEVICE


def _by_dlpack(value: Any) -> CudaPixels:
    capsule = value.__dlpack__(stream=_LEGACY_STREAM)
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = ctypes.cast(pointer_of(capsule, b"dltensor"), ctypes.POINTER(DLTensor)).contents
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
    _check(shape, (tensor.code, tensor.bits, tensor.lanes) == (1, 8, 1), f"{tensor.bits} bits", strides)
    with current_device(tensor.device_id):
        cuda.check(cuda.runtime().cudaStreamSynchronize(_LEGACY_STREAM))
    return CudaPixels(capsule, tensor.data + tensor.byte_offset, shape, tensor.device_id)


def _check(shape: tuple[int, ...], is_uint8: bool, kind: str, strides: Sequence[int] | None) -> None:
    """Raise `InputError` unless the pixels are contiguous. `strides` are in bytes, which are elements here."""
    if not is_uint8 or len(shape) not in (3, 4) or shape[-1] != 3 or not shape[0]:
        kind = "uint8" if is_uint8 else kind
        raise InputError(f"pixels on the GPU are {kind} {shape}; pass uint8 [H, W, 3] or [N, H, W, 3]")
    dense = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if strides is not None and any(
        length > 1 and stride != expected for length, stride, expected in zip(shape, strides, dense, strict=True)
    ):
        raise InputError("pixels on the GPU are not contiguous; pass tensor.contiguous()")
