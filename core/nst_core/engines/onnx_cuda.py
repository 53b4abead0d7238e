"""ONNX Runtime's CUDA execution provider, with a session for each shape.

A convolution of the CUDA provider keeps one cuDNN plan, for the last shape it saw. When the size of the images or of
the batch changes, every convolution is planned again, which takes tens to hundreds of milliseconds. A session that sees
one shape plans once. `CudaSessions` keeps such sessions, and runs batches in powers of two, so that a few sessions
serve every batch.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from . import cuda as _cuda
from .pinned import PinnedPool

CUDA = "CUDAExecutionProvider"

DEFAULTS = {CUDA: {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}}
"""Options that differ from ONNX Runtime's: its exhaustive search takes ten times as long and gains little, an arena
that serves one shape needs no powers of two, and FP32 means a 24-bit mantissa, not TF32's 11."""

STREAM_PROVIDERS = (CUDA, "TensorrtExecutionProvider")
"""Execution providers that accept our stream."""

RUN_COST_VALUES = 3 << 17
"""Fixed cost of a run, in input values: about half an image of 512x512, measured on an H100."""

MEMORY_SHARE = 0.5
"""Fraction of the GPU memory free at the start that the sessions may use, if no limit is given."""

OUT_OF_MEMORY_TEXTS = ("out of memory", "failed to allocate", "available memory", "alloc_failed")
"""Parts of the errors of ONNX Runtime, CUDA, cuDNN and cuBLAS, in lower case."""

Shapes = tuple[tuple[int, ...], ...]


class SessionError(RuntimeError):
    """ONNX Runtime cannot open the model on the requested execution providers."""


class CudaSessions:
    """One ONNX file on ONNX Runtime's CUDA provider, with a session for each shape; thread-safe.

    A new shape gets its own session while there is room. After that it runs in a session that all such shapes share, at
    the cost of planning again. It replaces the least recently used session if it comes again sooner than that one was
    used. `inputs` and `outputs` are the graph's tensor names.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        device: int = 0,
        provider_options: Mapping[str, str] = MappingProxyType({}),
        session_options: Any = None,
        sessions: int = 16,
        memory_limit: int | None = None,
        providers: Sequence[tuple[str, Mapping[str, str]]] | None = None,
        run_config: Mapping[str, str] = MappingProxyType({}),
        cuda: Any = _cuda,
    ) -> None:
        """Open the shared session; raises `SessionError` or `CudaError`.

        `provider_options` are the CUDA provider's. `sessions` is the number of shapes with their own session, and
        `memory_limit` the maximum bytes of GPU memory for all sessions together (default: half of what is free now).
        With 0 sessions, every shape runs in the shared session without a limit, as suits engines of dynamic shapes.
        `providers` replaces CUDA by other providers with their options. `run_config` holds entries of ONNX Runtime's
        `RunOptions`. `cuda` replaces the module of that name, for tests.
        """
        self._cuda, self._device = cuda, device
        cuda.use(device)
        self._stream = cuda.Stream()
        self._path, self._session_options = str(path), session_options
        self._providers = self._completed(providers or [(CUDA, provider_options)])
        # We synchronize with the stream ourselves, once, after the copies.
        self._run_config = {"disable_synchronize_execution_providers": "1", **run_config}
        self._pinned = PinnedPool(cuda)
        self._lock = threading.Lock()
        self._own: OrderedDict[Shapes, _Session] = OrderedDict()  # the least recently used first
        self._seen: OrderedDict[Shapes, int] = OrderedDict()  # shapes without a session, and when they ran
        self._clock, self._closed = 0, False
        self._max_sessions = sessions
        self._bytes_per_value = 0.0  # of the session that takes the maximum for its size
        self._shared: _Session | None = self._open()
        inputs, outputs = self._shared.session.get_inputs(), self._shared.session.get_outputs()
        self.inputs = tuple(tensor.name for tensor in inputs)
        self.outputs = tuple(tensor.name for tensor in outputs)
        self._batched = all(tensor.shape and not isinstance(tensor.shape[0], int) for tensor in (*inputs, *outputs))
        self._limit = int(cuda.free_memory() * MEMORY_SHARE) if memory_limit is None else memory_limit

    @property
    def shapes(self) -> tuple[Shapes, ...]:
        """Input shapes, batch included, that have their own session; the least recently used first."""
        return tuple(self._own)

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Return the named outputs for arrays that agree in their first axis, the batch, if the graph leaves it open.

        A batch runs in powers of two, padded with its last image where that is less work. The results are in memory
        that is reused once nothing refers to them. When a run fails, its session is dropped and ONNX Runtime's
        exception raised; the other sessions continue. Raises `ValueError` for an empty batch, and `SessionError` after
        `close`.
        """
        with self._lock:
            if self._closed:
                raise SessionError(f"{self._path}: the sessions are closed")
            self._cuda.use(self._device)
            arrays = [feeds[name] for name in self.inputs]
            if not self._batched:
                return self._run(arrays, 0, outputs)
            count = len(arrays[0])
            if count == 0:
                raise ValueError(f"{self.inputs[0]} is an empty batch")
            parts, at = [], 0
            for size in batch_sizes(count, max(array[0].size for array in arrays)):
                rows = [array[at : at + size] for array in arrays]
                parts.append(self._run(rows, size - len(rows[0]), outputs))
                at += size
            return parts[0] if len(parts) == 1 else [self._joined(part, count) for part in zip(*parts, strict=True)]

    def close(self) -> None:
        """Close the sessions and free their memory; nothing can be run afterwards."""
        with self._lock:
            self._closed = True
            self._close_shared()
            self._evict(len(self._own))
            self._pinned.close()
            self._stream.close()

    def _completed(self, providers: Sequence[tuple[str, Mapping[str, str]]]) -> list[tuple[str, dict[str, str]]]:
        """Return the providers with our defaults, the device and the stream."""
        completed = []
        for name, options in providers:
            placed = {"device_id": str(self._device), "user_compute_stream": str(self._stream.handle)}
            completed.append(
                (name, DEFAULTS.get(name, {}) | dict(options) | (placed if name in STREAM_PROVIDERS else {}))
            )
        return completed

    def _open(self) -> _Session:
        """Open a new session; raises `SessionError`."""
        import onnxruntime

        options = self._session_options
        if options is None:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(
                self._path, sess_options=options, providers=self._providers, enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common root
            raise SessionError(f"{self._path}: {error}") from error
        asked = [name for name, _ in self._providers]
        given = session.get_providers()
        if given[: len(asked)] != asked:
            raise SessionError(f"requested {', '.join(asked)} from ONNX Runtime, but got {', '.join(given)}")
        run_options = onnxruntime.RunOptions()
        for name, value in self._run_config.items():
            run_options.add_run_config_entry(name, value)
        place = ("cuda", self._device) if asked[0] in STREAM_PROVIDERS else ("cpu", 0)
        return _Session(session, run_options, place, self._cuda)

    def _run(self, arrays: list[np.ndarray], padding: int, outputs: Sequence[str]) -> list[np.ndarray]:
        """Run once, with `padding` images added to each array; if GPU memory runs out, free it all and retry once."""
        staged = [self._staged(array, padding) for array in arrays]
        try:
            return self._attempt(staged, padding, outputs)
        except Exception as error:  # ONNX Runtime's exceptions have no common root
            if not any(text in str(error).lower() for text in OUT_OF_MEMORY_TEXTS):
                raise
        self._close_shared()
        self._evict(len(self._own))
        return self._attempt(staged, padding, outputs)

    def _staged(self, array: np.ndarray, padding: int) -> np.ndarray:
        """Return the array in pinned memory, followed by `padding` copies of its last image."""
        if not padding:
            staged = self._pinned.array(array.shape, array.dtype)
            staged[...] = array
            return staged
        count = len(array)
        staged = self._pinned.array((count + padding, *array.shape[1:]), array.dtype)
        staged[:count] = array
        staged[count:] = array[-1:]
        return staged

    def _attempt(self, staged: list[np.ndarray], padding: int, outputs: Sequence[str]) -> list[np.ndarray]:
        """Run in the session for these shapes, and copy the outputs to the host without the padding."""
        shapes = tuple(array.shape for array in staged)
        session, free = self._session(shapes)
        try:
            values = session.start(dict(zip(self.inputs, staged, strict=True)), outputs, self._stream)
            answers = [self._pinned.array(_without(value.shape(), padding), _dtype(value)) for value in values]
            for answer, value in zip(answers, values, strict=True):
                self._cuda.to_host(answer.ctypes.data, value.data_ptr(), answer.nbytes, self._stream)
            self._stream.synchronize()
        except Exception:
            self._drop(shapes, session)
            raise
        if free is not None:
            self._measure(shapes, session, free)
        return answers

    def _joined(self, parts: Sequence[np.ndarray], count: int) -> np.ndarray:
        """Join the parts of a batch of `count` images."""
        joined = self._pinned.array((count, *parts[0].shape[1:]), parts[0].dtype)
        return np.concatenate(parts, out=joined)

    def _session(self, shapes: Shapes) -> tuple[_Session, int | None]:
        """Return the session for these input shapes, and the free memory before it ran if it may allocate more."""
        self._clock += 1
        if session := self._own.get(shapes):
            self._own.move_to_end(shapes)
            session.used = self._clock
            return session, None
        before = self._seen.pop(shapes, 0)
        if self._max_sessions == 0 or not self._admits(shapes, before):
            self._seen[shapes] = self._clock
            if len(self._seen) > 8 * self._max_sessions:
                self._seen.popitem(last=False)
            if self._shared is None:
                self._shared = self._open()
            return self._shared, self._cuda.free_memory() if self._max_sessions else None
        self._make_room(shapes)
        free = self._cuda.free_memory()
        session = self._own[shapes] = self._open()
        session.used = self._clock
        return session, free

    def _admits(self, shapes: Shapes, before: int) -> bool:
        """Return whether a shape that last ran at `before` (0: never) gets its own session now."""
        if self._expected(shapes) > self._limit:
            return False
        if len(self._own) < self._max_sessions and self._taken() + self._expected(shapes) <= self._limit:
            return True
        oldest = next(iter(self._own.values()), None)
        return oldest is None or before > oldest.used

    def _expected(self, shapes: Shapes) -> int:
        """Estimate the bytes of a session for these shapes from those of the others."""
        return int(self._bytes_per_value * _values(shapes))

    def _taken(self) -> int:
        return sum(session.memory for session in (*self._own.values(), *filter(None, [self._shared])))

    def _make_room(self, shapes: Shapes) -> None:
        """Close the least recently used sessions until another one fits."""
        while self._own and (
            len(self._own) >= self._max_sessions or self._taken() + self._expected(shapes) > self._limit
        ):
            self._evict(1)

    def _evict(self, count: int) -> None:
        """Close `count` sessions, the least recently used first."""
        for _ in range(min(count, len(self._own))):
            self._own.popitem(last=False)[1].close()

    def _close_shared(self) -> None:
        """Close the shared session; the next run that needs it opens another."""
        if self._shared:
            self._shared.close()
            self._shared = None

    def _measure(self, shapes: Shapes, session: _Session, free: int) -> None:
        """Add what a run allocated of the `free` memory before it to its session; enforce the total limit."""
        session.memory += max(0, free - self._cuda.free_memory())
        if session is not self._shared:
            self._bytes_per_value = max(self._bytes_per_value, session.memory / _values(shapes))
        if self._taken() > self._limit:
            self._close_shared()
        while self._own and self._taken() > self._limit:
            self._evict(1)  # in the end also the new session

    def _drop(self, shapes: Shapes, session: _Session) -> None:
        """Close a session that failed; the next run opens another."""
        if session is self._shared:
            self._close_shared()
        else:
            self._own.pop(shapes).close()


class _Session:
    """An ONNX Runtime session with its inputs on the device and their binding.

    `memory` is its measured use there, in bytes; `used` is the time of its last run.
    """

    def __init__(self, session: Any, run_options: Any, place: tuple[str, int], cuda: Any) -> None:
        self.session, self._run_options, self._place, self._cuda = session, run_options, place, cuda
        self._binding = session.io_binding()
        self._bound: Any = None
        self._inputs: dict[str, Any] = {}
        self.memory, self.used = 0, 0

    def start(self, staged: Mapping[str, np.ndarray], outputs: Sequence[str], stream: Any) -> list[Any]:
        """Copy the inputs and run, in the stream's order; return ONNX Runtime's values on the device."""
        self._bind({name: (array.shape, array.dtype) for name, array in staged.items()}, tuple(outputs))
        for name, array in staged.items():
            self._cuda.to_device(self._inputs[name].pointer, array.ctypes.data, array.nbytes, stream)
        self.session.run_with_iobinding(self._binding, self._run_options)
        values: list[Any] = self._binding.get_outputs()
        return values

    def _bind(self, inputs: dict[str, tuple[tuple[int, ...], np.dtype]], outputs: tuple[str, ...]) -> None:
        """Bind memory for these inputs; the outputs stay where ONNX Runtime puts them in the first run."""
        if self._bound == (inputs, outputs):
            return
        self._bound = None
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        for name, (shape, dtype) in inputs.items():
            size = math.prod(shape) * dtype.itemsize
            if name not in self._inputs or self._inputs[name].size < size:
                if memory := self._inputs.pop(name, None):
                    memory.close()
                self._inputs[name] = self._cuda.DeviceMemory(size)
            self._binding.bind_input(name, *self._place, dtype.type, shape, self._inputs[name].pointer)
        for name in outputs:
            self._binding.bind_output(name, *self._place)
        self._bound = (inputs, outputs)

    def close(self) -> None:
        """Free everything now, even if an exception's traceback still refers to this object."""
        self._binding = self.session = self._bound = None
        for memory in self._inputs.values():
            memory.close()
        self._inputs.clear()


def batch_sizes(count: int, values: int) -> list[int]:
    """Split `count` images of `values` each into powers of two with the least work, the last one padded or not.

    The work is that of the images, padding included, plus a fixed cost per run.
    """
    power = 1 << (count.bit_length() - 1)
    if power == count:
        return [count]
    split = [power, *batch_sizes(count - power, values)]
    padded = [2 * power]
    return min((padded, split), key=lambda sizes: sum(sizes) * values + len(sizes) * RUN_COST_VALUES)


def _values(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _without(shape: Sequence[int], padding: int) -> tuple[int, ...]:
    return (shape[0] - padding, *shape[1:]) if padding else tuple(shape)


def _dtype(value: Any) -> np.dtype:
    """Return the NumPy type of an ONNX Runtime value."""
    name: str = value.data_type().removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))
