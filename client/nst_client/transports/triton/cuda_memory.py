"""Pixels that lie in a GPU's memory, and the part of that memory which a Triton on the same machine shares.

The pixels never leave the GPU: they are copied into a region that the server has opened by CUDA's interprocess
handle, and what is painted of them out of it.
"""

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

from nst_client.transports.triton.shared_memory import new_name
from nst_core.engines import cuda
from nst_core.engines.dlpack import DLTensor
from nst_core.errors import InputError, MissingExtra

CUDA_DEVICE = 2
"""DLPack's number for memory of a GPU."""

_WHOLE = 2 * 2**20
"""CUDA gives out smaller parts of blocks of so many bytes, and shares whole blocks only."""

_LEGACY_STREAM = 1


@dataclass(frozen=True)
class CudaPixels:
    """`uint8 [N, H, W, 3]`, contiguous, at `pointer` on a GPU. `source` owns the memory: a tensor or an array.

    It has what the client uses of an array, and `__cuda_array_interface__` for those who get it as an answer.
    """

    source: Any
    pointer: int
    shape: tuple[int, ...]
    device: int

    dtype = np.dtype(np.uint8)

    @property
    def ndim(self) -> int:
        """Of the array, 4 as it is sent."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size, bytes."""
        return prod(self.shape)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            **{"version": 3, "shape": self.shape, "typestr": "|u1", "strides": None, "stream": None},
            "data": (self.pointer, False),
        }

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> CudaPixels:
        """Pictures of the batch, in the same memory."""
        start, stop, _ = part.indices(len(self))
        picture = prod(self.shape[1:])
        return CudaPixels(self.source, self.pointer + start * picture, (stop - start, *self.shape[1:]), self.device)

    def __setitem__(self, part: slice, painted: CudaPixels) -> None:
        target = self[part]
        copy(target.pointer, painted.pointer, target.nbytes, self.device)

    def empty(self) -> CudaPixels:
        """Memory for a result of this shape, from the same library as these pixels, ready to be written."""
        with on(self.device):
            library = _library(self.source)
            if library == "torch":
                made = self.source.new_empty(self.shape)
            elif library == "cupy":
                made = sys.modules[library].empty(self.shape, np.uint8)
            else:
                made = cuda.DeviceMemory(self.nbytes)
                return CudaPixels(made, made.pointer, self.shape, self.device)
            # A library's allocator gives out what its own stream may still work on.
            interface = made.__cuda_array_interface__
            _wait(made, interface)
            return CudaPixels(made, interface["data"][0], self.shape, self.device)


def pixels_on_gpu(value: Any) -> CudaPixels | None:
    """The pixels of an object with `__cuda_array_interface__` or DLPack's methods; None if they are no GPU's.

    What the object's library still has to do for them is waited for. Raises `InputError` for another type or shape
    than `uint8 [H, W, 3]` or `[N, H, W, 3]`, or if it is not contiguous; `MissingExtra` without `cuda-bindings`.
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


def like(given: Any, painted: CudaPixels) -> Any:
    """A painted batch as the kind of object that was given: a tensor of PyTorch, an array of CuPy, or itself."""
    single = len(given.shape) == 3
    if _library(given) in ("torch", "cupy"):
        return painted.source[0] if single else painted.source
    return CudaPixels(painted.source, painted.pointer, painted.shape[1:] if single else painted.shape, painted.device)


def not_shared(address: str) -> InputError:
    """What there is to say where pixels on a GPU cannot go."""
    return InputError(
        f"pixels on a GPU go to one Triton on this machine that may share memory, and {address} is none: give them in "
        "main memory, such as tensor.cpu().numpy()"
    )


class CudaRegion:
    """A `Region` of a GPU's memory."""

    kind = "cuda"

    def __init__(self, size: int, *, device: int) -> None:
        """Raises `InputError` where CUDA gives no memory, or shares none."""
        self.name, self.size, self._device = new_name(), -(-size // _WHOLE) * _WHOLE, device
        with on(device):
            self._memory = cuda.DeviceMemory(self.size)
            handle = cuda.check(cuda.runtime().cudaIpcGetMemHandle(self._memory.pointer))
        self._handle = ctypes.string_at(handle.getPtr(), cuda.runtime().CUDA_IPC_HANDLE_SIZE)

    def unseen(self, said: str) -> str:
        """See `Region`."""
        return (
            f"{said}; the server must have this GPU and see this process (docker run --ipc=host): else give the "
            "pixels in main memory, such as tensor.cpu().numpy()"
        )

    def registration(self) -> Sequence[Any]:
        """See `Region`."""
        return self._handle, self._device, self.size

    def registered(self) -> None:
        """See `Region`."""

    def write(self, pixels: CudaPixels) -> None:
        """Put pixels at its beginning."""
        copy(self._memory.pointer, pixels.pointer, pixels.nbytes, self._device)

    def read(self, offset: int, picture: CudaPixels) -> CudaPixels:
        """A copy of what lies at `offset`, of the shape and the library of `picture`."""
        painted = picture.empty()
        copy(painted.pointer, self._memory.pointer + offset, painted.nbytes, self._device)
        return painted

    def end(self) -> None:
        """See `Region`."""
        self._memory.close()


def copy(target: int, source: int, size: int, device: int) -> None:
    """Copy `size` bytes within a GPU, and wait until they are there. Raises `InputError` with CUDA's words."""
    with on(device):
        stream, runtime = _stream(device), cuda.runtime()
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        cuda.check(runtime.cudaMemcpyAsync(target, source, size, kind, stream.handle))
        stream.synchronize()


@cache
def _stream(device: int) -> cuda.Stream:
    return cuda.Stream()


@contextmanager
def on(device: int) -> Iterator[None]:
    """In the block a GPU is the current one of this thread, afterwards the caller's is again.

    Raises `InputError` with CUDA's words.
    """
    try:
        before = cuda.check(cuda.runtime().cudaGetDevice())
        cuda.use(device)
        try:
            yield
        finally:
            cuda.use(before)
    except cuda.CudaError as error:
        raise InputError(f"GPU {device} fails: {error}") from error


def _library(value: Any) -> str:
    """The package that an object's class is of."""
    return type(value).__module__.partition(".")[0]


def _by_interface(value: Any, interface: dict[str, Any]) -> CudaPixels:
    shape, strides = tuple(interface["shape"]), interface.get("strides")
    _check(shape, interface["typestr"] == "|u1", interface["typestr"], strides)
    pointer = interface["data"][0]
    with on(0):
        device = int(cuda.check(cuda.runtime().cudaPointerGetAttributes(pointer)).device)
    with on(device):
        _wait(value, interface)
    return CudaPixels(value, pointer, shape, device)


def _wait(value: Any, interface: dict[str, Any]) -> None:
    """Until the object's library has done what it still had to do on its own stream."""
    runtime = cuda.runtime()
    if _library(value) == "torch":  # its interface is of a version that says nothing about streams
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
    return device is not None and device()[0] == CUDA_DEVICE


def _by_dlpack(value: Any) -> CudaPixels:
    capsule = value.__dlpack__(stream=_LEGACY_STREAM)
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = ctypes.cast(pointer_of(capsule, b"dltensor"), ctypes.POINTER(DLTensor)).contents
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
    _check(shape, (tensor.code, tensor.bits, tensor.lanes) == (1, 8, 1), f"{tensor.bits} bits", strides)
    with on(tensor.device_id):
        cuda.check(cuda.runtime().cudaStreamSynchronize(_LEGACY_STREAM))
    return CudaPixels(capsule, tensor.data + tensor.byte_offset, shape, tensor.device_id)


def _check(shape: tuple[int, ...], is_uint8: bool, kind: str, strides: Sequence[int] | None) -> None:
    """`strides` are in bytes, which are elements here."""
    if not is_uint8 or len(shape) not in (3, 4) or shape[-1] != 3 or not shape[0]:
        kind = "uint8" if is_uint8 else kind
        raise InputError(f"pixels on the GPU are {kind} {shape}, expected uint8 [H, W, 3] or [N, H, W, 3]")
    dense = [prod(shape[place + 1 :]) for place in range(len(shape))]
    if strides is not None and any(
        side > 1 and stride != wanted for side, stride, wanted in zip(shape, strides, dense, strict=True)
    ):
        raise InputError("pixels on the GPU are not contiguous: give tensor.contiguous()")
