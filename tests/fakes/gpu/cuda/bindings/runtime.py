"""The CUDA runtime on main memory, as far as the engines use it: what a test can see of a GPU where there is none.

Work that is given to a stream is done when somebody waits for it and not before, so a missing wait shows as wrong
values. Memory that is not allocated, or no longer, is an error of the work that touches it, and a copy from memory
that is not pinned is an error too. `counts` says how often each thing happened, `fail` lets a call fail, `in_use` is
the number of bytes that are allocated.
"""
# ruff: noqa: N801, N802, N815, N816

import ctypes
import itertools
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import wraps
from typing import Any

cudaStreamNonBlocking = 1
cudaEventBlockingSync = 1
cudaEventDisableTiming = 2
cudaHostAllocDefault = 0


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidDevice = 101
    cudaErrorIllegalAddress = 700
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureUnsupported = 900


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


@dataclass
class cudaDeviceProp:
    name: bytes = b"NVIDIA Fake GPU"
    major: int = 9
    minor: int = 0


class Fault(Exception):
    """What work on the device fails with."""

    def __init__(self, status: cudaError_t) -> None:
        super().__init__(status.name)
        self.status = status


Operation = Callable[[], None]


@dataclass
class _Stream:
    waiting: deque[Operation] = field(default_factory=deque)
    given: int = 0
    done: int = 0
    recording: list[Operation] | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    def run(self, until: int) -> cudaError_t:
        """Do the work up to a mark; an error skips the rest of it, and is reported once."""
        with self.lock:
            status = cudaError_t.cudaSuccess
            while self.waiting and self.done < until:
                operation = self.waiting.popleft()
                self.done += 1
                if status == cudaError_t.cudaSuccess:
                    try:
                        operation()
                    except Fault as fault:
                        status = fault.status
            return status


@dataclass
class _Block:
    size: int
    pinned: bool
    buffer: Any


counts: Counter[str] = Counter()
devices = 1
_blocks: dict[int, _Block] = {}
_streams: dict[int, _Stream] = {}
_events: dict[int, tuple[_Stream, int] | None] = {}
_graphs: dict[int, list[Operation]] = {}
_failures: dict[str, list[cudaError_t]] = {}
_handles = itertools.count(1000)
_lock = threading.RLock()


def fail(call: str, status: cudaError_t = cudaError_t.cudaErrorMemoryAllocation, times: int = 1) -> None:
    """Let the next `times` calls of a function fail."""
    _failures.setdefault(call, []).extend([status] * times)


def fail_no_more() -> None:
    """Let all calls succeed again."""
    _failures.clear()


def in_use() -> int:
    """Bytes that are allocated, on the device and pinned."""
    with _lock:
        return sum(block.size for block in _blocks.values())


def alive() -> int:
    """Streams, events and graphs that were not given back."""
    return len(_streams) + len(_events) + len(_graphs)


def enqueue(stream: int, operation: Operation) -> None:
    """Give work to a stream, or to the graph that it records."""
    own = _streams[int(stream)]
    with own.lock:
        if own.recording is not None:
            own.recording.append(operation)
        else:
            own.waiting.append(operation)
            own.given += 1


def check_span(address: int, size: int, *, pinned: bool = False) -> None:
    """Raise `Fault` unless `size` bytes from `address` on are allocated, on the device or pinned as asked."""
    with _lock:
        for start, block in _blocks.items():
            if start <= address and address + size <= start + block.size and block.pinned == pinned:
                return
    raise Fault(cudaError_t.cudaErrorIllegalAddress)


def _call(function: Any) -> Any:
    """Count a call, let it fail if that was asked for, and give its status first."""

    @wraps(function)
    def called(*arguments: Any) -> tuple[Any, ...]:
        with _lock:
            counts[function.__name__] += 1
            if waiting := _failures.get(function.__name__):
                if function.__name__ == "cudaStreamEndCapture":  # ends it all the same, as the real one
                    _streams[int(arguments[0])].recording = None
                return (waiting.pop(0), None)
        try:
            values = function(*arguments)
        except Fault as fault:
            return (fault.status, None)
        return (cudaError_t.cudaSuccess, *(values if isinstance(values, tuple) else (values,)))

    return called


def cudaGetErrorName(status: int) -> tuple[int, bytes]:
    return 0, cudaError_t(status).name.encode()


def cudaGetErrorString(status: int) -> tuple[int, bytes]:
    return 0, b"the fake device says so"


@_call
def cudaSetDevice(device: int) -> None:
    if not 0 <= device < devices:
        raise Fault(cudaError_t.cudaErrorInvalidDevice)


@_call
def cudaGetDeviceProperties(device: int) -> cudaDeviceProp:
    if not 0 <= device < devices:
        raise Fault(cudaError_t.cudaErrorInvalidDevice)
    return cudaDeviceProp()


@_call
def cudaMemGetInfo() -> tuple[int, int]:
    return 2**34 - in_use(), 2**34


def _allocate(size: int, pinned: bool) -> int:
    buffer = (ctypes.c_uint8 * (size + 256))()
    ctypes.memset(buffer, 0xCD, size + 256)
    address = -(-ctypes.addressof(buffer) // 256) * 256
    with _lock:
        _blocks[address] = _Block(size, pinned, buffer)
    counts["allocations"] += 1
    return address


def _release(address: int, pinned: bool) -> None:
    with _lock:
        if address not in _blocks or _blocks[address].pinned != pinned:
            raise Fault(cudaError_t.cudaErrorInvalidValue)
        del _blocks[address]


@_call
def cudaMalloc(size: int) -> int:
    return _allocate(size, pinned=False)


@_call
def cudaFree(address: int) -> None:
    _release(address, pinned=False)


@_call
def cudaHostAlloc(size: int, flags: int) -> int:
    return _allocate(size, pinned=True)


@_call
def cudaFreeHost(address: int) -> None:
    _release(address, pinned=True)


@_call
def cudaMemcpyAsync(target: int, source: int, size: int, kind: cudaMemcpyKind, stream: int) -> None:
    to_device = kind == cudaMemcpyKind.cudaMemcpyHostToDevice

    def copy() -> None:
        check_span(source, size, pinned=to_device)
        check_span(target, size, pinned=not to_device)
        ctypes.memmove(target, source, size)

    enqueue(stream, copy)


@_call
def cudaStreamCreateWithFlags(flags: int) -> int:
    handle = next(_handles)
    _streams[handle] = _Stream()
    return handle


@_call
def cudaStreamDestroy(stream: int) -> None:
    _streams.pop(int(stream)).run(2**62)


@_call
def cudaStreamSynchronize(stream: int) -> None:
    status = _streams[int(stream)].run(2**62)
    if status:
        raise Fault(status)


@_call
def cudaStreamBeginCapture(stream: int, mode: cudaStreamCaptureMode) -> None:
    _streams[int(stream)].recording = []


@_call
def cudaStreamEndCapture(stream: int) -> int:
    own = _streams[int(stream)]
    recorded, own.recording = own.recording, None
    if recorded is None:
        raise Fault(cudaError_t.cudaErrorInvalidValue)
    handle = next(_handles)
    _graphs[handle] = recorded
    return handle


@_call
def cudaGraphInstantiate(graph: int, flags: int) -> int:
    handle = next(_handles)
    _graphs[handle] = list(_graphs[graph])
    return handle


@_call
def cudaGraphDestroy(graph: int) -> None:
    del _graphs[graph]


@_call
def cudaGraphExecDestroy(graph: int) -> None:
    del _graphs[graph]


@_call
def cudaGraphLaunch(graph: int, stream: int) -> None:
    for operation in _graphs[graph]:
        enqueue(stream, operation)


@_call
def cudaEventCreateWithFlags(flags: int) -> int:
    handle = next(_handles)
    _events[handle] = None
    return handle


@_call
def cudaEventDestroy(event: int) -> None:
    del _events[event]


@_call
def cudaEventRecord(event: int, stream: int) -> None:
    own = _streams[int(stream)]
    _events[event] = (own, own.given)


@_call
def cudaEventSynchronize(event: int) -> None:
    mark = _events[event]
    status = mark[0].run(mark[1]) if mark else cudaError_t.cudaSuccess
    if status:
        raise Fault(status)
