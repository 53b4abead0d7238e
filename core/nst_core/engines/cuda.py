"""The part of the CUDA runtime that the engines use, through NVIDIA's `cuda-bindings`: memory, streams and graphs.

Everything belongs to the device that `use` made current in the calling thread. Handles are freed by `close`, or when
the object is collected.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np


class CudaError(RuntimeError):
    """The CUDA runtime reports an error; the message is its name and description."""


@cache
def runtime() -> Any:
    """Import `cuda.bindings.runtime`; raises `ModuleNotFoundError` if `cuda-bindings` is not installed."""
    from cuda.bindings import runtime

    return runtime


def check(result: tuple[Any, ...]) -> Any:
    """Return the value of a runtime call, whose result begins with its status; raises `CudaError`."""
    status, *values = result
    if int(status) != 0:
        name = runtime().cudaGetErrorName(status)[1]
        text = runtime().cudaGetErrorString(status)[1]
        raise CudaError(": ".join(part.decode() if isinstance(part, bytes) else str(part) for part in (name, text)))
    return values[0] if values else None


def use(device: int) -> None:
    """Make a device current in this thread; the first call of a process initializes CUDA there."""
    check(runtime().cudaSetDevice(device))


def card(device: int) -> tuple[str, str]:
    """Return a GPU's name and compute capability, such as `9.0`; raises `CudaError` if there is no such GPU."""
    properties = check(runtime().cudaGetDeviceProperties(device))
    name = properties.name
    text = name.decode() if isinstance(name, bytes) else str(name)
    return text.rstrip("\0"), f"{properties.major}.{properties.minor}"


def free_memory() -> int:
    """Return the free bytes of the current device."""
    status, free, _ = runtime().cudaMemGetInfo()
    check((status,))
    return int(free)


class Stream:
    """A CUDA stream: work that the device runs in order. `handle` is CUDA's pointer to it."""

    def __init__(self) -> None:
        """Create the stream; raises `CudaError`."""
        created = check(runtime().cudaStreamCreateWithFlags(runtime().cudaStreamNonBlocking))
        self.handle = int(created)
        self.close = weakref.finalize(self, _quietly, runtime().cudaStreamDestroy, created)

    def synchronize(self) -> None:
        """Wait until the device has finished the work of this stream."""
        check(runtime().cudaStreamSynchronize(self.handle))

    @contextmanager
    def captured(self) -> Iterator[Graph]:
        """Record what the block gives to this stream as a graph, without running it; yield the graph."""
        check(
            runtime().cudaStreamBeginCapture(
                self.handle, runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            )
        )
        graph = Graph()
        try:
            yield graph
        except BaseException:
            _quietly(runtime().cudaStreamEndCapture, self.handle)  # a stream must not stay in capture
            raise
        graph.instantiate(check(runtime().cudaStreamEndCapture(self.handle)))


class Event:
    """A CUDA event. A thread that waits for it sleeps, or spins with `busy_wait`."""

    def __init__(self, *, busy_wait: bool = False) -> None:
        """Create the event; raises `CudaError`."""
        flags = runtime().cudaEventDisableTiming | (0 if busy_wait else runtime().cudaEventBlockingSync)
        self._event = check(runtime().cudaEventCreateWithFlags(flags))
        self.close = weakref.finalize(self, _quietly, runtime().cudaEventDestroy, self._event)

    def record(self, stream: Stream) -> None:
        """Place the event after the stream's current work."""
        check(runtime().cudaEventRecord(self._event, stream.handle))

    def wait(self) -> None:
        """Wait until the device reaches the event; raises `CudaError` of the work before it."""
        check(runtime().cudaEventSynchronize(self._event))


class Graph:
    """A CUDA graph: recorded work that one call launches again, on the same addresses."""

    def __init__(self) -> None:
        """Create an empty graph, which `Stream.captured` fills."""
        self._executable: Any = None

    def instantiate(self, graph: Any) -> None:
        """Make CUDA's graph ready to launch, and free the recording."""
        try:
            self._executable = check(runtime().cudaGraphInstantiate(graph, 0))
        finally:
            _quietly(runtime().cudaGraphDestroy, graph)
        self.close = weakref.finalize(self, _quietly, runtime().cudaGraphExecDestroy, self._executable)

    def launch(self, stream: Stream) -> None:
        """Launch the graph on a stream."""
        check(runtime().cudaGraphLaunch(self._executable, stream.handle))


class DeviceMemory:
    """`size` bytes on the device at `pointer`."""

    def __init__(self, size: int) -> None:
        """Allocate the memory; raises `CudaError`, such as for more than is free."""
        self.size = size
        self.pointer = int(check(runtime().cudaMalloc(max(size, 1))))
        self.close = weakref.finalize(self, _quietly, runtime().cudaFree, self.pointer)


class PinnedMemory:
    """`size` bytes of host memory that the device reads and writes directly; `array` is their `uint8 [size]` view."""

    def __init__(self, size: int) -> None:
        """Allocate the memory; raises `CudaError`."""
        self.size = size
        self.pointer = int(check(runtime().cudaHostAlloc(max(size, 1), runtime().cudaHostAllocDefault)))
        self.array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.pointer))
        self.close = weakref.finalize(self, _quietly, runtime().cudaFreeHost, self.pointer)


def to_device(target: int, source: int, size: int, stream: Stream) -> None:
    """Copy `size` bytes of pinned memory to the device, in the stream's order."""
    kind = runtime().cudaMemcpyKind.cudaMemcpyHostToDevice
    check(runtime().cudaMemcpyAsync(target, source, size, kind, stream.handle))


def to_host(target: int, source: int, size: int, stream: Stream) -> None:
    """Copy `size` bytes of the device to pinned memory, in the stream's order."""
    kind = runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost
    check(runtime().cudaMemcpyAsync(target, source, size, kind, stream.handle))


def _quietly(call: Any, *arguments: Any) -> None:
    """Free something and ignore errors: at the end of the process, CUDA may be gone already."""
    call(*arguments)
