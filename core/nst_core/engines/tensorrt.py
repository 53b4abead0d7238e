"""A TensorRT plan on one GPU, from host arrays to host arrays, for any number of threads.

An engine has a few contexts: each a CUDA stream, memory that is used again and grows only when it must, and CUDA graphs
of the shapes that come more than once. While one context computes, others copy in and out.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from . import cuda, plans

Array = np.ndarray[Any, Any]

Feeds = Mapping[str, Array | Sequence[Array]]
"""By input: an array, or arrays that differ in their first axis only and run as one batch."""

TYPES = {"UINT8": np.uint8, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}
TYPES |= {"HALF": np.float16, "FLOAT": np.float32}
"""TensorRT's element types by name."""

ALIGNMENT = 256
"""Bytes; TensorRT wants its tensors at multiples of it."""


class EngineError(RuntimeError):
    """TensorRT refused or failed; the message is in its own words."""


@dataclass(frozen=True)
class Tensor:
    """A plan's input or output; `minimum` and `maximum` are an input's shapes, -1 in `shape` is open."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    minimum: tuple[int, ...] = ()
    maximum: tuple[int, ...] = ()


class TensorRTEngine:
    """One deserialized plan. Every method may be called by several threads at once.

    `contexts` is how many runs are under way at most; `graphs` how many CUDA graphs a context keeps, the least recently
    used leaves first. With `busy_wait` a thread that waits for the GPU spins, which takes a core and saves some
    microseconds. `inputs` are the names in the plan's order, `output` is the name of its only output; `tensors` says
    more of them. `graphs_fail` is why CUDA graphs are not used, None where they are.
    """

    def __init__(
        self,
        plan: Path | bytes,
        *,
        device: int = 0,
        contexts: int = 2,
        graphs: int = 16,
        busy_wait: bool = False,
        library: Any = None,
    ) -> None:
        """Raises `PlanError` for a plan that TensorRT does not run here, and `CudaError` where there is no GPU."""
        self.library = plans.tensorrt() if library is None else library
        self.device, self.graphs, self.busy_wait = device, graphs, busy_wait
        self.graphs_fail: str | None = None
        self.making = threading.Lock()  # TensorRT's engine is one thread's at a time
        cuda.use(device)
        self.logger = plans.logger_of(self.library)
        self._runtime = self.library.Runtime(self.logger)
        content = plan if isinstance(plan, bytes) else plan.read_bytes()
        self.engine = self._runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            called = "the plan" if isinstance(plan, bytes) else str(plan)
            raise plans.PlanError(
                f"{called}: TensorRT {self.library.__version__} does not run this plan on this GPU "
                f"({self.logger.said() or 'it gave no reason'}); export the model again on this machine"
            )
        self.tensors = self._described()
        self.inputs = tuple(name for name, tensor in self.tensors.items() if tensor.maximum)
        (self.output,) = (name for name in self.tensors if name not in self.inputs)
        self._seen: OrderedDict[tuple[tuple[int, ...], ...], None] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._lanes = [_Lane(self) for _ in range(contexts)]
        self._free = list(self._lanes)

    @property
    def minimum(self) -> tuple[int, ...]:
        """The smallest shape of the first input, such as (1, 16, 16, 3)."""
        return self.tensors[self.inputs[0]].minimum

    @property
    def maximum(self) -> tuple[int, ...]:
        """The largest shape of the first input, such as (4, 1920, 1920, 3)."""
        return self.tensors[self.inputs[0]].maximum

    def run(self, feeds: Feeds, out: Array | None = None) -> Array:
        """The output for `feeds`, in `out` if it is given, else in a new array.

        Raises `ValueError` for inputs that the plan does not take, and `EngineError` or `CudaError` for a run that
        fails; the engine goes on.
        """
        return self.submit(feeds, out).result()

    def submit(self, feeds: Feeds, out: Array | None = None) -> Pending:
        """Copy `feeds` and start their run, once a context is free; the arrays may be changed when this returns.

        Raises as `run`. What it returns holds the context until its `result` or `close`.
        """
        shapes = self.shapes(feeds)
        cuda.use(self.device)
        lane = self._taken(shapes)
        try:
            lane.start(shapes, feeds, capture=self._comes_again(shapes))
        except BaseException:
            lane.settle()
            self.give(lane)
            raise
        return Pending(self, lane, out)

    def warm(self, feeds: Feeds) -> None:
        """Run `feeds` in every context and record the CUDA graph for their shapes; raises as `run`."""
        shapes = self.shapes(feeds)
        cuda.use(self.device)
        for lane in self._lanes:
            with self._changed:
                self._changed.wait_for(lambda lane=lane: self._closed or lane in self._free)  # type: ignore[misc]
                self._check_open()
                self._free.remove(lane)
            try:
                lane.start(shapes, feeds, capture=True)
                lane.wait()
            finally:
                lane.settle()
                self.give(lane)
        self._comes_again(shapes)

    def close(self) -> None:
        """Wait for what runs, and give all memory back."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._free) == len(self._lanes))
            lanes, self._free, self._lanes = self._lanes, [], []
        for lane in lanes:
            lane.close()
        self.engine = self._runtime = None

    def _described(self) -> dict[str, Tensor]:
        found = {}
        for position in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(position)
            kind = self.engine.get_tensor_dtype(name).name
            if kind not in TYPES:
                raise plans.PlanError(f"the plan's tensor {name} is {kind}, which numpy does not have")
            limits: tuple[tuple[int, ...], ...] = ()
            if self.engine.get_tensor_mode(name) == self.library.TensorIOMode.INPUT:
                smallest, _, largest = self.engine.get_tensor_profile_shape(name, 0)
                limits = tuple(smallest), tuple(largest)
            found[name] = Tensor(name, np.dtype(TYPES[kind]), tuple(self.engine.get_tensor_shape(name)), *limits)
        if sum(not tensor.maximum for tensor in found.values()) != 1:
            raise plans.PlanError("the plan has not exactly one output, as models of styles and textures have")
        return found

    def shapes(self, feeds: Feeds) -> tuple[tuple[int, ...], ...]:
        """The shapes of `feeds` in the order of `inputs`; raises `ValueError` for what the plan does not take."""
        if set(feeds) != set(self.inputs):
            raise ValueError(f"the plan's inputs are {', '.join(self.inputs)}; given are {', '.join(feeds) or 'none'}")
        return tuple(_shape_of(self.tensors[name], _parts(feeds[name])) for name in self.inputs)

    def _comes_again(self, shapes: tuple[tuple[int, ...], ...]) -> bool:
        """Whether these shapes came before, not long ago: only then a graph of them is worth its recording."""
        with self._changed:
            again = shapes in self._seen
            self._seen[shapes] = None
            self._seen.move_to_end(shapes)
            while len(self._seen) > max(self.graphs, 1):
                self._seen.popitem(last=False)
        return again

    def _taken(self, shapes: tuple[tuple[int, ...], ...]) -> _Lane:
        """A free context, one that has the graph for `shapes` if there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._free)
            self._check_open()
            lane = next((lane for lane in reversed(self._free) if shapes in lane.graphs), self._free[-1])
            self._free.remove(lane)
        return lane

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed")

    def give(self, lane: _Lane) -> None:
        """Take back the context of a run that has ended."""
        with self._changed:
            self._free.append(lane)
            self._changed.notify_all()


class Pending:
    """A run under way. It holds one of the engine's contexts until `result`, `close` or the end of its `with`."""

    def __init__(self, engine: TensorRTEngine, lane: _Lane, out: Array | None) -> None:
        """See `TensorRTEngine.submit`."""
        self._engine, self._out = engine, out
        self._lane: _Lane | None = lane

    def __enter__(self) -> Pending:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def result(self) -> Array:
        """Wait, and the output, which is the caller's; raises as `TensorRTEngine.run`, and ends this."""
        with self:
            answer = self.wait()
            if self._out is None:
                return answer.copy()
            np.copyto(self._out, answer)
            return self._out

    def wait(self) -> Array:
        """Wait, and the output in the engine's own pinned memory, to be read until `close`; raises as `result`."""
        return self._running().wait()

    @property
    def feeds(self) -> dict[str, Array]:
        """The inputs in the engine's own pinned memory, to be read until `restart` or `close`."""
        return self._running().feeds

    def restart(self, feeds: Feeds) -> None:
        """Run something else in the same context, whatever became of this run; raises as `submit`."""
        shapes = self._engine.shapes(feeds)
        lane = self._running()
        lane.settle()
        lane.start(shapes, feeds, capture=False)

    def close(self) -> None:
        """Give the context back, when its run has ended; a second call does nothing."""
        if self._lane is not None:
            lane, self._lane = self._running(), None
            lane.settle()
            self._engine.give(lane)

    def _running(self) -> _Lane:
        """The context, its device being the current one of this thread."""
        if self._lane is None:
            raise EngineError("this run is closed")
        cuda.use(self._engine.device)
        return self._lane


@dataclass(frozen=True)
class _Layout:
    """Where the tensors of one set of shapes lie: offsets in the memory for inputs, and sizes in bytes."""

    shapes: dict[str, tuple[int, ...]]
    offsets: dict[str, int]
    size: int
    output: tuple[int, ...]
    output_size: int


@dataclass
class _Recorded:
    """A CUDA graph, and the context that is its own: TensorRT allows no change of it while the graph is in use."""

    graph: cuda.Graph
    context: Any
    layout: _Layout


class _Lane:
    """A stream with its memory and contexts; used by one thread at a time."""

    def __init__(self, engine: TensorRTEngine) -> None:
        self._engine = engine
        self._stream = cuda.Stream()
        self._done = cuda.Event(busy_wait=engine.busy_wait)
        self._context = self._new_context()
        self._spare: list[Any] = []
        self.graphs: OrderedDict[tuple[tuple[int, ...], ...], _Recorded] = OrderedDict()
        self._sent, self._answered = _Memory(cuda.PinnedMemory), _Memory(cuda.PinnedMemory)
        self._inputs, self._output = _Memory(cuda.DeviceMemory), _Memory(cuda.DeviceMemory)
        self._activations = _Memory(cuda.DeviceMemory)
        self._layout: _Layout | None = None
        self._busy = False

    def start(self, shapes: tuple[tuple[int, ...], ...], feeds: Feeds, *, capture: bool) -> None:
        """Copy `feeds` and start their run; with `capture` its graph is recorded for the next time."""
        engine = self._engine
        recorded = self.graphs.get(shapes)
        if recorded is not None:
            self.graphs.move_to_end(shapes)
            self._fill(recorded.layout, feeds)
            self._busy = True
            recorded.graph.launch(self._stream)
            self._done.record(self._stream)
            return
        capture = capture and engine.graphs > 0 and engine.graphs_fail is None
        context = self._own_context() if capture else self._context
        layout = self._bound(context, shapes)
        self._fill(layout, feeds)
        self._busy = True
        self._enqueue(context, layout)
        self._done.record(self._stream)
        if capture:
            self._record(shapes, context, layout)

    def wait(self) -> Array:
        """Wait for the run; its output in pinned memory."""
        assert self._layout is not None
        self._done.wait()
        self._busy = False
        tensor = self._engine.tensors[self._engine.output]
        view = self._answered.array[: self._layout.output_size].view(tensor.dtype)
        return view.reshape(self._layout.output)

    @property
    def feeds(self) -> dict[str, Array]:
        """The inputs in pinned memory."""
        assert self._layout is not None
        views = {}
        for name, shape in self._layout.shapes.items():
            kind, start = self._engine.tensors[name].dtype, self._layout.offsets[name]
            views[name] = self._sent.array[start : start + prod(shape) * kind.itemsize].view(kind).reshape(shape)
        return views

    def settle(self) -> None:
        """Wait until nothing of this stream uses the memory, whatever became of it."""
        if self._busy:
            with suppress(cuda.CudaError):  # said already, or to be said by the next run
                self._stream.synchronize()
            self._busy = False

    def close(self) -> None:
        """Give everything back."""
        self._drop_graphs()
        self._spare = []
        self._context = None
        for memory in (self._sent, self._answered, self._inputs, self._output, self._activations):
            memory.free()
        self._done.close()
        self._stream.close()

    def _new_context(self) -> Any:
        strategy = self._engine.library.ExecutionContextAllocationStrategy.USER_MANAGED
        with self._engine.making:
            context = self._engine.engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(f"TensorRT made no execution context: {self._engine.logger.said()}")
        if context.active_optimization_profile != 0:
            context.set_optimization_profile_async(0, self._stream.handle)
        return context

    def _own_context(self) -> Any:
        """A context for a graph: that of a graph that leaves, where there is no room for another."""
        while len(self.graphs) >= self._engine.graphs:
            self._forget(self.graphs.popitem(last=False)[1])
        return self._spare.pop() if self._spare else self._new_context()

    def _bound(self, context: Any, shapes: tuple[tuple[int, ...], ...]) -> _Layout:
        """Give a context its shapes and the addresses of this lane's memory, which grows if it must."""
        engine = self._engine
        wanted = dict(zip(engine.inputs, shapes, strict=True))
        for name, shape in wanted.items():
            if not context.set_input_shape(name, shape):
                raise ValueError(f"{name} {_text(shape)}: TensorRT does not take it: {engine.logger.said()}")
        output = tuple(context.get_tensor_shape(engine.output))
        if min(output) < 0:
            given = ", ".join(f"{name} {_text(shape)}" for name, shape in wanted.items())
            raise ValueError(f"{given}: these do not go together: {engine.logger.said()}")
        layout = self._laid_out(wanted, output)
        self._make_room(layout, context.update_device_memory_size_for_shapes())
        # Not set_device_memory, which wants what the profile's largest shapes take.
        context.device_memory = self._activations.pointer
        for name, offset in layout.offsets.items():
            context.set_tensor_address(name, self._inputs.pointer + offset)
        context.set_tensor_address(engine.output, self._output.pointer)
        return layout

    def _make_room(self, layout: _Layout, activations: int) -> None:
        """Let the memory grow to what a run needs; graphs have the addresses of the memory that was there before."""
        needs = [
            (self._sent, layout.size),
            (self._inputs, layout.size),
            (self._answered, layout.output_size),
            (self._output, layout.output_size),
            (self._activations, activations),
        ]
        if not all(memory.holds(size) for memory, size in needs):
            self._drop_graphs()
            for memory, size in needs:
                memory.grow(size)

    def _laid_out(self, shapes: dict[str, tuple[int, ...]], output: tuple[int, ...]) -> _Layout:
        tensors, offsets, size = self._engine.tensors, {}, 0
        for name, shape in shapes.items():
            offsets[name] = size
            size += -(-prod(shape) * tensors[name].dtype.itemsize // ALIGNMENT) * ALIGNMENT
        return _Layout(shapes, offsets, size, output, prod(output) * tensors[self._engine.output].dtype.itemsize)

    def _fill(self, layout: _Layout, feeds: Feeds) -> None:
        """Copy the inputs into pinned memory."""
        self._layout = layout
        for name, view in self.feeds.items():
            start = 0
            for part in _parts(feeds[name]):
                np.copyto(view[start : start + len(part)], part)
                start += len(part)

    def _enqueue(self, context: Any, layout: _Layout) -> None:
        """Give the stream a whole run: inputs in, network, output out."""
        cuda.to_device(self._inputs.pointer, self._sent.pointer, layout.size, self._stream)
        if not context.execute_async_v3(self._stream.handle):
            raise EngineError(f"TensorRT could not start a run: {self._engine.logger.said() or 'it gave no reason'}")
        cuda.to_host(self._answered.pointer, self._output.pointer, layout.output_size, self._stream)

    def _record(self, shapes: tuple[tuple[int, ...], ...], context: Any, layout: _Layout) -> None:
        """Record the run that has just been started; without CUDA graphs the engine goes on, and says why."""
        try:
            with self._stream.captured() as graph:
                self._enqueue(context, layout)
        except (cuda.CudaError, EngineError) as error:
            self._engine.graphs_fail = str(error)
        else:
            self.graphs[shapes] = _Recorded(graph, context, layout)

    def _drop_graphs(self) -> None:
        """Forget every graph."""
        while self.graphs:
            self._forget(self.graphs.popitem()[1])

    def _forget(self, recorded: _Recorded) -> None:
        recorded.graph.close()
        self._spare.append(recorded.context)


class _Memory:
    """Memory on the device or pinned, as `kind` says, that grows and is used again."""

    def __init__(self, kind: type[cuda.DeviceMemory] | type[cuda.PinnedMemory]) -> None:
        self._kind = kind
        self._memory: Any = None

    @property
    def pointer(self) -> int:
        return int(self._memory.pointer)

    @property
    def array(self) -> Array:
        """What is in pinned memory, as bytes."""
        array: Array = self._memory.array
        return array

    def holds(self, size: int) -> bool:
        """Whether `size` bytes are there already."""
        return self._memory is not None and size <= self._memory.size

    def grow(self, size: int) -> None:
        """Have at least `size` bytes, at a new address if they were not there."""
        if not self.holds(size):
            self.free()  # before the larger one is taken: both need not fit
            self._memory = self._kind(_rounded(size))

    def free(self) -> None:
        if self._memory is not None:
            self._memory.close()
        self._memory = None


def _rounded(size: int) -> int:
    """The next of 4, 5, 6, 7, 8, 10, 12, 14, 16, ... quarters: slightly larger shapes need no other memory."""
    step = max(ALIGNMENT, 1 << max(0, size.bit_length() - 3))
    return max(ALIGNMENT, -(-size // step) * step)


def _parts(value: Array | Sequence[Array]) -> Sequence[Array]:
    return (value,) if isinstance(value, np.ndarray) else value


def _shape_of(tensor: Tensor, parts: Sequence[Array]) -> tuple[int, ...]:
    """The shape of `parts` as one batch; raises `ValueError` for what the plan does not take."""
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    if any(part.shape[1:] != shape[1:] for part in parts):
        raise ValueError(f"{tensor.name}: {', '.join(_text(part.shape) for part in parts)} are not of one shape")
    if any(part.dtype != tensor.dtype for part in parts):
        raise ValueError(f"{tensor.name} is {parts[0].dtype}; the plan takes {tensor.dtype}")
    if len(shape) != len(tensor.maximum) or not all(
        low <= side <= high for low, side, high in zip(tensor.minimum, shape, tensor.maximum, strict=True)
    ):
        limits = f"{_text(tensor.minimum)} to {_text(tensor.maximum)}"
        raise ValueError(f"{tensor.name} {_text(shape)} is outside of the plan's shapes, {limits}")
    return shape


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
