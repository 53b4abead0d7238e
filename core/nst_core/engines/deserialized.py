"""A deserialized TensorRT plan: its tensors, the shapes that it accepts, and its execution contexts."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import plans

Array = np.ndarray[Any, Any]

Feeds = Mapping[str, Array | Sequence[Array]]
"""By input name: an array, or arrays that differ in their first axis only and run as one batch."""

Shapes = tuple[tuple[int, ...], ...]
"""Shapes of the inputs, in the plan's order."""

TYPES = {"UINT8": np.uint8, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}
TYPES |= {"HALF": np.float16, "FLOAT": np.float32}
"""TensorRT's element types by name."""


class EngineError(RuntimeError):
    """TensorRT refuses or fails; the message is TensorRT's."""


@dataclass(frozen=True)
class Tensor:
    """A plan's input or output; `minimum` and `maximum` are an input's shapes, and -1 in `shape` is a dynamic axis."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    minimum: tuple[int, ...] = ()
    maximum: tuple[int, ...] = ()


class DeserializedPlan:
    """A plan that TensorRT can run on the current GPU.

    `inputs` are the names in the plan's order, `output` is the name of its only output; `tensors` describes them.
    """

    def __init__(self, plan: Path | bytes, library: Any) -> None:
        """Deserialize a plan; raises `PlanError` if TensorRT cannot run it here."""
        self._library = library
        self._logger = plans.logger_of(library)
        self._runtime = library.Runtime(self._logger)
        self._one_thread = threading.Lock()  # one thread at a time may use TensorRT's engine
        content = plan if isinstance(plan, bytes) else plan.read_bytes()
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            called = "the plan" if isinstance(plan, bytes) else str(plan)
            raise plans.PlanError(
                f"{called}: TensorRT {library.__version__} cannot run this plan on this GPU "
                f"({self.reason()}); export the model again on this machine"
            )
        self.tensors = self._described()
        self.inputs = tuple(name for name, tensor in self.tensors.items() if tensor.maximum)
        (self.output,) = (name for name in self.tensors if name not in self.inputs)

    def new_context(self, stream: int) -> Any:
        """Create an execution context that uses our memory; raises `EngineError`."""
        with self._one_thread:
            context = self._engine.create_execution_context(
                self._library.ExecutionContextAllocationStrategy.USER_MANAGED
            )
        if context is None:
            raise EngineError(f"TensorRT could not create an execution context: {self.reason()}")
        if context.active_optimization_profile != 0:
            context.set_optimization_profile_async(0, stream)
        return context

    def shapes(self, feeds: Feeds) -> Shapes:
        """Return the shapes of `feeds` in the order of `inputs`; `ValueError` for what the plan does not accept."""
        if set(feeds) != set(self.inputs):
            raise ValueError(f"the plan's inputs are {', '.join(self.inputs)}, but got {', '.join(feeds) or 'none'}")
        return tuple(_shape_of(self.tensors[name], parts_of(feeds[name])) for name in self.inputs)

    def reason(self) -> str:
        """Return TensorRT's latest errors and forget them."""
        errors: str = self._logger.take_errors()
        return errors or "it gave no reason"

    def close(self) -> None:
        """Free the plan."""
        self._engine = self._runtime = None

    def _described(self) -> dict[str, Tensor]:
        found = {}
        for position in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(position)
            kind = self._engine.get_tensor_dtype(name).name
            if kind not in TYPES:
                raise plans.PlanError(f"the plan's tensor {name} has the type {kind}, which NumPy lacks")
            limits: tuple[tuple[int, ...], ...] = ()
            if self._engine.get_tensor_mode(name) == self._library.TensorIOMode.INPUT:
                smallest, _, largest = self._engine.get_tensor_profile_shape(name, 0)
                limits = tuple(smallest), tuple(largest)
            found[name] = Tensor(name, np.dtype(TYPES[kind]), tuple(self._engine.get_tensor_shape(name)), *limits)
        if sum(not tensor.maximum for tensor in found.values()) != 1:
            raise plans.PlanError("the plan must have exactly one output, as style and texture models do")
        return found


def parts_of(value: Array | Sequence[Array]) -> Sequence[Array]:
    """Return the arrays that run as one batch."""
    return (value,) if isinstance(value, np.ndarray) else value


def _shape_of(tensor: Tensor, parts: Sequence[Array]) -> tuple[int, ...]:
    """Return the shape of `parts` as one batch; `ValueError` for what the plan does not accept."""
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    if any(part.shape[1:] != shape[1:] for part in parts):
        raise ValueError(f"{tensor.name}: {', '.join(shape_text(part.shape) for part in parts)} differ in shape")
    if any(part.dtype != tensor.dtype for part in parts):
        raise ValueError(f"{tensor.name} is {parts[0].dtype}, but the plan needs {tensor.dtype}")
    if len(shape) != len(tensor.maximum) or not all(
        low <= side <= high for low, side, high in zip(tensor.minimum, shape, tensor.maximum, strict=True)
    ):
        limits = f"{shape_text(tensor.minimum)} to {shape_text(tensor.maximum)}"
        raise ValueError(f"{tensor.name} {shape_text(shape)} is outside the plan's shapes, {limits}")
    return shape


def shape_text(shape: Sequence[int]) -> str:
    """Format a shape for a message, such as `4x512x512x3`."""
    return "x".join(map(str, shape))
