"""Run a TensorRT plan on one GPU, from host arrays to host arrays, from any number of threads.

An engine has a few contexts: each has a CUDA stream, memory that is reused and grows only if necessary, and CUDA graphs
of the shapes that recur. While one context computes, others copy in and out.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from . import cuda, plans
from .deserialized import Array, DeserializedPlan, EngineError, Feeds, Shapes
from .slots import GraphUse, Slot


class TensorRTEngine:
    """One deserialized plan; thread-safe.

    `contexts` is the maximum number of concurrent runs; `graphs` the number of CUDA graphs per context, of which the
    least recently used is dropped first. With `busy_wait`, a thread that waits for the GPU spins, which occupies a core
    and saves some microseconds. `inputs` are the names in the plan's order, `output` is the name of its only output;
    `tensors` describes them.
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
        """Deserialize the plan; `PlanError` if TensorRT cannot run it here, `CudaError` if there is no GPU."""
        self.device, self.busy_wait = device, busy_wait
        cuda.use(device)
        self._plan = DeserializedPlan(plan, plans.import_tensorrt() if library is None else library)
        self.tensors, self.inputs, self.output = self._plan.tensors, self._plan.inputs, self._plan.output
        self._graph_use = GraphUse(graphs)
        self._seen: OrderedDict[Shapes, None] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._slots = [Slot(self._plan, self._graph_use, busy_wait=busy_wait) for _ in range(contexts)]
        self._free = list(self._slots)

    @property
    def graphs_fail(self) -> str | None:
        """Why CUDA graphs are not used; None if they are."""
        return self._graph_use.failure

    @property
    def minimum(self) -> tuple[int, ...]:
        """The smallest shape of the first input, such as (1, 16, 16, 3)."""
        return self.tensors[self.inputs[0]].minimum

    @property
    def maximum(self) -> tuple[int, ...]:
        """The largest shape of the first input, such as (4, 1920, 1920, 3)."""
        return self.tensors[self.inputs[0]].maximum

    def run(self, feeds: Feeds, out: Array | None = None) -> Array:
        """Return the output for `feeds`, in `out` if given, else in a new array.

        Raises `ValueError` for inputs that the plan does not accept, and `EngineError` or `CudaError` if the run fails;
        the engine remains usable.
        """
        return self.submit(feeds, out).result()

    def submit(self, feeds: Feeds, out: Array | None = None) -> Pending:
        """Copy `feeds` and start their run once a context is free; the arrays may be changed when this returns.

        Raises as `run`. The returned `Pending` holds the context until its `result` or `close`.
        """
        shapes = self._plan.shapes(feeds)
        cuda.use(self.device)
        slot = self._take_any(shapes)
        try:
            slot.start(shapes, feeds, capture=self._comes_again(shapes))
        except BaseException:
            slot.settle()
            self.give(slot)
            raise
        return Pending(self, slot, out)

    def warm(self, feeds: Feeds) -> None:
        """Run `feeds` in every context and record the CUDA graph for their shapes; raises as `run`."""
        shapes = self._plan.shapes(feeds)
        cuda.use(self.device)
        for slot in self._slots:
            self._take(slot)
            try:
                slot.start(shapes, feeds, capture=True)
                slot.wait()
            finally:
                slot.settle()
                self.give(slot)
        self._comes_again(shapes)

    def close(self) -> None:
        """Wait for the runs in progress, and free all memory."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._free) == len(self._slots))
            slots, self._free, self._slots = self._slots, [], []
        for slot in slots:
            slot.close()
        self._plan.close()

    def _comes_again(self, shapes: Shapes) -> bool:
        """Return whether these shapes came recently: only then recording a graph pays off."""
        with self._changed:
            again = shapes in self._seen
            self._seen[shapes] = None
            self._seen.move_to_end(shapes)
            while len(self._seen) > max(self._graph_use.maximum, 1):
                self._seen.popitem(last=False)
        return again

    def shapes(self, feeds: Feeds) -> Shapes:
        """Return the shapes of `feeds` in the order of `inputs`; `ValueError` for what the plan does not accept."""
        return self._plan.shapes(feeds)

    def _take_any(self, shapes: Shapes) -> Slot:
        """Take a free context, preferably one with the graph for `shapes`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._free)
            self._check_open()
            slot = next((slot for slot in reversed(self._free) if shapes in slot.graphs), self._free[-1])
            self._free.remove(slot)
        return slot

    def _take(self, slot: Slot) -> None:
        """Wait until this context is free and take it."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or slot in self._free)
            self._check_open()
            self._free.remove(slot)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed")

    def give(self, slot: Slot) -> None:
        """Return the context of a run that has ended."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify_all()


class Pending:
    """A run in progress. It holds one of the engine's contexts until `result`, `close` or the end of its `with`."""

    def __init__(self, engine: TensorRTEngine, slot: Slot, out: Array | None) -> None:
        """Create it with `TensorRTEngine.submit`."""
        self._engine, self._out = engine, out
        self._slot: Slot | None = slot

    def __enter__(self) -> Pending:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def result(self) -> Array:
        """Wait, return the output, which belongs to the caller, and close; raises as `TensorRTEngine.run`."""
        with self:
            answer = self.wait()
            if self._out is None:
                return answer.copy()
            np.copyto(self._out, answer)
            return self._out

    def wait(self) -> Array:
        """Wait and return the output in the engine's pinned memory, valid until `close`; raises as `result`."""
        return self._running().wait()

    @property
    def feeds(self) -> dict[str, Array]:
        """Inputs in the engine's pinned memory, readable until `restart` or `close`."""
        return self._running().feeds

    def restart(self, feeds: Feeds) -> None:
        """Run other inputs in the same context, whatever the state of this run; raises as `submit`."""
        shapes = self._engine.shapes(feeds)
        slot = self._running()
        slot.settle()
        slot.start(shapes, feeds, capture=False)

    def close(self) -> None:
        """Return the context once its run has ended; a second call does nothing."""
        if self._slot is not None:
            slot, self._slot = self._running(), None
            slot.settle()
            self._engine.give(slot)

    def _running(self) -> Slot:
        """Return the context, and make its device current in this thread."""
        if self._slot is None:
            raise EngineError("this run is closed")
        cuda.use(self._engine.device)
        return self._slot
