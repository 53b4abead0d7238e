"""Where a TensorRT plan runs: streams with their memory, execution contexts and CUDA graphs."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from . import cuda
from .deserialized import Array, DeserializedPlan, EngineError, Feeds, Shapes, parts_of, shape_text

ALIGNMENT_BYTES = 256
"""TensorRT needs its tensors at multiples of this."""


@dataclass(frozen=True)
class Layout:
    """Placement of the tensors of one set of shapes: offsets in the input memory, and sizes in bytes."""

    shapes: dict[str, tuple[int, ...]]
    offsets: dict[str, int]
    size: int
    output: tuple[int, ...]
    output_size: int


@dataclass
class RecordedGraph:
    """A CUDA graph and its own context: TensorRT allows no change of the context while the graph is in use."""

    graph: cuda.Graph
    context: Any
    layout: Layout


@dataclass
class GraphUse:
    """Maximum CUDA graphs per slot, and why there are none if recording has failed."""

    maximum: int
    failure: str | None = None


class Slot:
    """A stream with its memory and execution contexts; used by one thread at a time."""

    def __init__(self, plan: DeserializedPlan, graph_use: GraphUse, *, busy_wait: bool) -> None:
        self._plan, self._graph_use = plan, graph_use
        self._stream = cuda.Stream()
        self._done = cuda.Event(busy_wait=busy_wait)
        self._context = self._plan.new_context(self._stream.handle)
        self._spare: list[Any] = []
        self.graphs: OrderedDict[Shapes, RecordedGraph] = OrderedDict()
        self._sent, self._answered = Memory(cuda.PinnedMemory), Memory(cuda.PinnedMemory)
        self._inputs, self._output = Memory(cuda.DeviceMemory), Memory(cuda.DeviceMemory)
        self._activations = Memory(cuda.DeviceMemory)
        self._layout: Layout | None = None
        self._busy = False

    def start(self, shapes: Shapes, feeds: Feeds, *, capture: bool) -> None:
        """Copy `feeds` and start their run; with `capture`, record its graph for the next time."""
        recorded = self.graphs.get(shapes)
        if recorded is not None:
            self.graphs.move_to_end(shapes)
            self._fill(recorded.layout, feeds)
            self._busy = True
            recorded.graph.launch(self._stream)
            self._done.record(self._stream)
            return
        capture = capture and self._graph_use.maximum > 0 and self._graph_use.failure is None
        context = self._own_context() if capture else self._context
        layout = self._bind(context, shapes)
        self._fill(layout, feeds)
        self._busy = True
        self._enqueue(context, layout)
        self._done.record(self._stream)
        if capture:
            self._record(shapes, context, layout)

    def wait(self) -> Array:
        """Wait for the run; return its output in pinned memory."""
        assert self._layout is not None
        self._done.wait()
        self._busy = False
        tensor = self._plan.tensors[self._plan.output]
        view = self._answered.array[: self._layout.output_size].view(tensor.dtype)
        return view.reshape(self._layout.output)

    @property
    def feeds(self) -> dict[str, Array]:
        """The inputs in pinned memory."""
        assert self._layout is not None
        views = {}
        for name, shape in self._layout.shapes.items():
            kind, start = self._plan.tensors[name].dtype, self._layout.offsets[name]
            views[name] = self._sent.array[start : start + prod(shape) * kind.itemsize].view(kind).reshape(shape)
        return views

    def settle(self) -> None:
        """Wait until nothing in this stream uses the memory, even after a failed run."""
        if self._busy:
            with suppress(cuda.CudaError):  # reported already, or by the next run
                self._stream.synchronize()
            self._busy = False

    def close(self) -> None:
        """Free everything."""
        self._drop_graphs()
        self._spare = []
        self._context = None
        for memory in (self._sent, self._answered, self._inputs, self._output, self._activations):
            memory.free()
        self._done.close()
        self._stream.close()

    def _own_context(self) -> Any:
        """Return a context for a graph; if there is no room for another graph, that of the least recently used."""
        while len(self.graphs) >= self._graph_use.maximum:
            self._forget(self.graphs.popitem(last=False)[1])
        return self._spare.pop() if self._spare else self._plan.new_context(self._stream.handle)

    def _bind(self, context: Any, shapes: Shapes) -> Layout:
        """Set a context's shapes and the addresses of this slot's memory, which grows if necessary."""
        plan = self._plan
        wanted = dict(zip(plan.inputs, shapes, strict=True))
        for name, shape in wanted.items():
            if not context.set_input_shape(name, shape):
                raise ValueError(f"{name} {shape_text(shape)}: TensorRT does not accept it: {plan.reason()}")
        output = tuple(context.get_tensor_shape(plan.output))
        if min(output) < 0:
            given = ", ".join(f"{name} {shape_text(shape)}" for name, shape in wanted.items())
            raise ValueError(f"{given}: these shapes do not fit together: {plan.reason()}")
        layout = self._layout_of(wanted, output)
        self._make_room(layout, context.update_device_memory_size_for_shapes())
        # Not set_device_memory, which needs the memory of the profile's largest shapes.
        context.device_memory = self._activations.pointer
        for name, offset in layout.offsets.items():
            context.set_tensor_address(name, self._inputs.pointer + offset)
        context.set_tensor_address(plan.output, self._output.pointer)
        return layout

    def _make_room(self, layout: Layout, activations: int) -> None:
        """Grow the memory to what a run needs; drop the graphs if addresses change."""
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

    def _layout_of(self, shapes: dict[str, tuple[int, ...]], output: tuple[int, ...]) -> Layout:
        tensors, offsets, size = self._plan.tensors, {}, 0
        for name, shape in shapes.items():
            offsets[name] = size
            size += _next_multiple(prod(shape) * tensors[name].dtype.itemsize, ALIGNMENT_BYTES)
        return Layout(shapes, offsets, size, output, prod(output) * tensors[self._plan.output].dtype.itemsize)

    def _fill(self, layout: Layout, feeds: Feeds) -> None:
        """Copy the inputs into pinned memory."""
        self._layout = layout
        for name, view in self.feeds.items():
            start = 0
            for part in parts_of(feeds[name]):
                np.copyto(view[start : start + len(part)], part)
                start += len(part)

    def _enqueue(self, context: Any, layout: Layout) -> None:
        """Queue a whole run in the stream: copy in, network, copy out."""
        cuda.to_device(self._inputs.pointer, self._sent.pointer, layout.size, self._stream)
        if not context.execute_async_v3(self._stream.handle):
            raise EngineError(f"TensorRT could not start a run: {self._plan.reason()}")
        cuda.to_host(self._answered.pointer, self._output.pointer, layout.output_size, self._stream)

    def _record(self, shapes: Shapes, context: Any, layout: Layout) -> None:
        """Record the run that was just started; if that fails, note why and continue without graphs."""
        try:
            with self._stream.captured() as graph:
                self._enqueue(context, layout)
        except (cuda.CudaError, EngineError) as error:
            self._graph_use.failure = str(error)
        else:
            self.graphs[shapes] = RecordedGraph(graph, context, layout)

    def _drop_graphs(self) -> None:
        """Drop every graph."""
        while self.graphs:
            self._forget(self.graphs.popitem()[1])

    def _forget(self, recorded: RecordedGraph) -> None:
        recorded.graph.close()
        self._spare.append(recorded.context)


class Memory:
    """Device or pinned memory, as `kind` says, that grows and is reused; sizes are in bytes."""

    def __init__(self, kind: type[cuda.DeviceMemory] | type[cuda.PinnedMemory]) -> None:
        self._kind = kind
        self._memory: Any = None

    @property
    def pointer(self) -> int:
        """Its address."""
        return int(self._memory.pointer)

    @property
    def array(self) -> Array:
        """Content of pinned memory, as bytes."""
        array: Array = self._memory.array
        return array

    def holds(self, size: int) -> bool:
        """Return whether `size` bytes are already allocated."""
        return self._memory is not None and size <= self._memory.size

    def grow(self, size: int) -> None:
        """Allocate at least `size` bytes, at a new address unless they were already there."""
        if not self.holds(size):
            self.free()  # before allocating the larger block: both may not fit
            self._memory = self._kind(_with_reserve(size))

    def free(self) -> None:
        """Free the memory."""
        if self._memory is not None:
            self._memory.close()
        self._memory = None


def _with_reserve(size: int) -> int:
    """Round up to the next of 4, 5, 6, 7, 8, 10, 12, 14, 16, ... quarters: slightly larger shapes fit, too."""
    step = max(ALIGNMENT_BYTES, 1 << max(0, size.bit_length() - 3))
    return max(ALIGNMENT_BYTES, _next_multiple(size, step))


def _next_multiple(size: int, step: int) -> int:
    """Return the smallest multiple of `step` that is not below `size`."""
    return (size + step - 1) // step * step
