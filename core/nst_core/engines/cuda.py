"""The part of the CUDA runtime that the engines use, by NVIDIA's own `cuda-bindings`: memory, streams and graphs.

Everything belongs to the device that `use` made current in the calling thread. Handles are given back by `close`, or
when the object is collected.
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
    """The CUDA runtime refused a call; the message is its name and its own words."""


@cache
def runtime() -> Any:
    """The module `cuda.bindings.runtime`; raises `ModuleNotFoundError` where `cuda-bindings` is not installed."""
    from cuda.bindings import runtime

    return runtime


def check(result: tuple[Any, ...]) -> Any:
    """The value of a call, which gives its status first; raises `CudaError`."""
    status, *values = result
    if int(status) != 0:
        name = runtime().cudaGetErrorName(status)[1]
        text = runtime().cudaGetErrorString(status)[1]
        raise CudaError(": ".join(part.decode() if isinstance(part, bytes) else str(part) for part in (name, text)))
    return values[0] if values else None


def use(device: int) -> None:
    """Make a device the current one of this thread; the first call of a process starts CUDA there."""
    check(runtime().cudaSetDevice(device))


def card(device: int) -> tuple[str, str]:
    """A GPU's name and compute capability, such as `9.0`; raises `CudaError` where there is no such GPU."""
    properties = check(runtime().cudaGetDeviceProperties(device))
    name = properties.name
    text = name.decode() if isinstance(name, bytes) else str(name)
    return text.rstrip("\0"), f"{properties.major}.{properties.minor}"


def free_memory() -> int:
    """Bytes of the current device that nobody uses now."""
    status, free, _ = runtime().cudaMemGetInfo()
    check((status,))
    return int(free)


class Stream:
    """An order of work on the device. `handle` is CUDA's pointer to it."""

    def __init__(self) -> None:
        """Raises `CudaError`."""
        created = check(runtime().cudaStreamCreateWithFlags(runtime().cudaStreamNonBlocking))
        self.handle = int(created)
        self.close = weakref.finalize(self, _quietly, runtime().cudaStreamDestroy, created)

    def synchronize(self) -> None:
        """Wait until the device has done all that the stream has."""
        check(runtime().cudaStreamSynchronize(self.handle))

    @contextmanager
    def captured(self) -> Iterator[Graph]:
        """A graph of what the block gives to this stream, which is recorded and not run."""
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
    """A mark in a stream. A thread that waits for it sleeps, or spins with `busy_wait`."""

    def __init__(self, *, busy_wait: bool = False) -> None:
        """Raises `CudaError`."""
        flags = runtime().cudaEventDisableTiming | (0 if busy_wait else runtime().cudaEventBlockingSync)
        self._event = check(runtime().cudaEventCreateWithFlags(flags))
        self.close = weakref.finalize(self, _quietly, runtime().cudaEventDestroy, self._event)

    def record(self, stream: Stream) -> None:
        """Put the mark behind what the stream has."""
        check(runtime().cudaEventRecord(self._event, stream.handle))

    def wait(self) -> None:
        """Wait until the device is there; raises `CudaError` of the work before it."""
        check(runtime().cudaEventSynchronize(self._event))


class Graph:
    """Recorded work that one call starts again, on the same addresses."""

    def __init__(self) -> None:
        """Empty until `Stream.captured` ends."""
        self._executable: Any = None

    def instantiate(self, graph: Any) -> None:
        """Make CUDA's graph ready to run, and give the recording back."""
        try:
            self._executable = check(runtime().cudaGraphInstantiate(graph, 0))
        finally:
            _quietly(runtime().cudaGraphDestroy, graph)
        self.close = weakref.finalize(self, _quietly, runtime().cudaGraphExecDestroy, self._executable)

    def launch(self, stream: Stream) -> None:
        """Start it."""
        check(runtime().cudaGraphLaunch(self._executable, stream.handle))


class DeviceMemory:
    """`size` bytes on the device at `pointer`."""

    def __init__(self, size: int) -> None:
        """Raises `CudaError`, such as for more than is free."""
        self.size = size
        self.pointer = int(check(runtime().cudaMalloc(max(size, 1))))
        self.close = weakref.finalize(self, _quietly, runtime().cudaFree, self.pointer)


class PinnedMemory:
    """`size` bytes of main memory that the device reads and writes by itself; `array` is them as `uint8 [size]`."""

    def __init__(self, size: int) -> None:
        """Raises `CudaError`."""
        self.size = size
        self.pointer = int(check(runtime().cudaHostAlloc(max(size, 1), runtime().cudaHostAllocDefault)))
        self.array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.pointer))
        self.close = weakref.finalize(self, _quietly, runtime().cudaFreeHost, self.pointer)


def to_device(target: int, source: int, size: int, stream: Stream) -> None:
    """Copy `size` bytes of pinned memory to the device, when the stream comes to it."""
    kind = runtime().cudaMemcpyKind.cudaMemcpyHostToDevice
    check(runtime().cudaMemcpyAsync(target, source, size, kind, stream.handle))


def to_host(target: int, source: int, size: int, stream: Stream) -> None:
    """Copy `size` bytes of the device to pinned memory, when the stream comes to it."""
    kind = runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost
    check(runtime().cudaMemcpyAsync(target, source, size, kind, stream.handle))


def _quietly(call: Any, *arguments: Any) -> None:
    """Give something back; when the process ends CUDA may be gone already."""
    call(*arguments)
