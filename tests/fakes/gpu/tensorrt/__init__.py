"""TensorRT's Python API as far as the engines use it: a plan holds its ONNX graph, and ONNX Runtime's CPU runs it.

Runs go through the streams and the memory of the fake CUDA runtime, at the addresses that were bound. What TensorRT
calls undefined is an error of the run here: too little memory for activations, addresses that were given back, a graph
whose context was changed after it was recorded.
"""

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from math import prod
from typing import Any

import numpy as np
import onnxruntime
from cuda.bindings import runtime

__version__ = "10.99.0.1"

MAGIC = b"FAKE PLAN\n"
GPU = "NVIDIA Fake GPU"

counts: Counter[str] = Counter()
"""`builds`, `runs`, `contexts`, since the process began."""


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    INT32 = 3
    UINT8 = 5
    INT64 = 8


_TYPES = {
    "tensor(uint8)": DataType.UINT8,
    "tensor(float)": DataType.FLOAT,
    "tensor(float16)": DataType.HALF,
    "tensor(int32)": DataType.INT32,
    "tensor(int64)": DataType.INT64,
}
_NUMPY = {
    DataType.UINT8: np.uint8,
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.INT32: np.int32,
    DataType.INT64: np.int64,
}


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(IntEnum):
    TF32 = 7


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    pass


@dataclass
class _Tensor:
    name: str
    dtype: DataType
    axes: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis if isinstance(axis, int) else -1 for axis in self.axes)

    def get_dimension_name(self, position: int) -> str:
        axis = self.axes[position]
        return axis if isinstance(axis, str) else ""


def _session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _tensors(arguments: list[Any]) -> list[_Tensor]:
    return [_Tensor(argument.name, _TYPES[argument.type], tuple(argument.shape)) for argument in arguments]


class _Network:
    def __init__(self, flags: int) -> None:
        self.graph = b""
        self.inputs: list[_Tensor] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, position: int) -> _Tensor:
        return self.inputs[position]


class OnnxParser:
    def __init__(self, network: _Network, logger: ILogger) -> None:
        self._network, self._errors = network, list[str]()

    def parse(self, graph: bytes) -> bool:
        try:
            session = _session(graph)
        except Exception as error:
            self._errors.append(str(error))
            return False
        self._network.graph, self._network.inputs = graph, _tensors(session.get_inputs())
        return True

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, position: int) -> str:
        return self._errors[position]


class _TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


@dataclass
class _Profile:
    shapes: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = list(shapes)


class _Config:
    def __init__(self) -> None:
        self.profile = _Profile()
        self.progress_monitor: Any = None
        self.flags = {BuilderFlag.TF32}
        self._timings = _TimingCache(b"")

    def add_optimization_profile(self, profile: _Profile) -> int:
        self.profile = profile
        return 0

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def create_timing_cache(self, content: bytes) -> _TimingCache:
        return _TimingCache(content)

    def set_timing_cache(self, cache: _TimingCache, ignore_mismatch: bool) -> bool:
        if cache.content and not cache.content.startswith(b"timings"):
            return False
        self._timings = cache
        return True

    def get_timing_cache(self) -> _TimingCache:
        self._timings.content = self._timings.content or b"timings"
        return self._timings


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> _Network:
        return _Network(flags)

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("Building engine", None, 4)
            if not all(monitor.step_complete("Building engine", step) for step in range(4)):
                return None
            monitor.phase_finish("Building engine")
        if BuilderFlag.TF32 in config.flags:
            self._logger.log(ILogger.Severity.ERROR, "TF32 is on")
            return None
        counts["builds"] += 1
        about = {"version": __version__, "gpu": GPU, "shapes": config.profile.shapes}
        return MAGIC + json.dumps(about).encode() + b"\n" + network.graph


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> "_Engine | None":
        if not plan.startswith(MAGIC):
            self._logger.log(ILogger.Severity.ERROR, "Serialization assertion magicTag == kTAG failed.")
            return None
        about, _, graph = plan.removeprefix(MAGIC).partition(b"\n")
        values = json.loads(about)
        for name, here in (("version", __version__), ("gpu", GPU)):
            if values[name] != here:
                self._logger.log(ILogger.Severity.ERROR, f"The engine plan file is of {name} {values[name]}")
                return None
        return _Engine(graph, values["shapes"], self._logger)


class _Engine:
    def __init__(self, graph: bytes, shapes: dict[str, list[list[int]]], logger: ILogger) -> None:
        self.session, self.shapes, self.logger = _session(graph), shapes, logger
        inputs, outputs = _tensors(self.session.get_inputs()), _tensors(self.session.get_outputs())
        self.modes = dict.fromkeys((tensor.name for tensor in inputs), TensorIOMode.INPUT)
        self.modes |= dict.fromkeys((tensor.name for tensor in outputs), TensorIOMode.OUTPUT)
        self.tensors = {tensor.name: tensor for tensor in (*inputs, *outputs)}

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, position: int) -> str:
        return list(self.tensors)[position]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.tensors[name].dtype

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self.modes[name]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.shapes[name]]

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> "_Context":
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        counts["contexts"] += 1
        return _Context(self)


class _Context:
    """`changes` counts what was set, so that a recorded run knows that its context is not what it was."""

    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = 0
        self.changes = 0
        self.active_optimization_profile = -1
        self._thread: int | None = None

    @property
    def device_memory(self) -> int:
        return self._memory

    @device_memory.setter
    def device_memory(self, pointer: int) -> None:
        assert pointer % 256 == 0
        self._memory = pointer
        self.changes += 1

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.active_optimization_profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, 0)
        if not all(low <= side <= high for low, side, high in zip(smallest, shape, largest, strict=True)):
            self._engine.logger.log(ILogger.Severity.ERROR, f"{name}: shape {shape} is not in the profile")
            return False
        self._shapes[name] = tuple(shape)
        self.changes += 1
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes: dict[str, int] = {}
        for given, shape in self._shapes.items():
            for axis, side in zip(self._engine.tensors[given].axes, shape, strict=True):
                if isinstance(axis, str) and sizes.setdefault(axis, side) != side:
                    self._engine.logger.log(ILogger.Severity.ERROR, f"{axis} is {sizes[axis]} and {side}")
                    return tuple(-1 for _ in self._engine.tensors[name].axes)
        axes = self._engine.tensors[name].axes
        return tuple(sizes.get(axis, -1) if isinstance(axis, str) else axis for axis in axes)

    def update_device_memory_size_for_shapes(self) -> int:
        return 16 * sum(prod(shape) for shape in self._shapes.values())

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0
        self._addresses[name] = address
        self.changes += 1
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine, shapes, addresses = self._engine, dict(self._shapes), dict(self._addresses)
        if set(addresses) != set(engine.tensors) or not self._memory:
            engine.logger.log(ILogger.Severity.ERROR, "not every address is set")
            return False
        changes, memory, size = self.changes, self._memory, self.update_device_memory_size_for_shapes()
        (output,) = (name for name, mode in engine.modes.items() if mode == TensorIOMode.OUTPUT)

        def view(name: str, shape: tuple[int, ...]) -> np.ndarray:
            kind = np.dtype(_NUMPY[engine.tensors[name].dtype])
            count = prod(shape) * kind.itemsize
            runtime.check_span(addresses[name], count)
            raw = np.ctypeslib.as_array((runtime.ctypes.c_uint8 * count).from_address(addresses[name]))
            return raw.view(kind).reshape(shape)

        def run() -> None:
            if self.changes != changes or self._thread not in (None, threading.get_ident()):
                raise runtime.Fault(runtime.cudaError_t.cudaErrorLaunchFailure)
            self._thread = threading.get_ident()
            runtime.check_span(memory, size)
            runtime.ctypes.memset(memory, 0xAB, size)
            try:
                answer = engine.session.run(None, {name: view(name, shape) for name, shape in shapes.items()})[0]
            except runtime.Fault:
                raise
            except Exception as error:
                raise runtime.Fault(runtime.cudaError_t.cudaErrorLaunchFailure) from error
            finally:
                self._thread = None
            np.copyto(view(output, answer.shape), answer)
            counts["runs"] += 1

        runtime.enqueue(stream, run)
        return True
