"""TensorRT engines: for the GPU at hand (`tensorrt`), or ahead of time for named GPUs (`tensorrt_rtx`).

Both libraries have one API. Networks are strongly typed: the precision is the graph's own. TensorRT for RTX
parses and builds on a machine without a GPU; only running needs one.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from nst_core.errors import InputError
from nst_core.files import written_whole
from nst_export.errors import ExportError
from nst_export.verify import Engine, Feeds

Target = Literal["tensorrt", "tensorrt-rtx"]

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Profile:
    """What sizes an engine takes: (batch, height, width) at least, mostly and at most."""

    minimum: Shape
    optimum: Shape
    maximum: Shape

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Of `256x256/512x512/4x1080x1920`, each height x width with or without a batch; raises `InputError`."""
        shapes: list[Shape] = []
        for part in text.split("/"):
            sides = [int(side) for side in part.split("x")] if re.fullmatch(r"\d+x\d+(x\d+)?", part) else []
            if not sides or 0 in sides:
                raise InputError(f"--shapes has {part!r}: give min/opt/max, such as 256x256/512x512/4x1080x1920")
            n, height, width = sides if len(sides) == 3 else (1, *sides)
            shapes.append((n, height, width))
        if len(shapes) != 3 or any(not a <= b <= c for a, b, c in zip(*shapes, strict=True)):
            raise InputError(f"--shapes {text!r}: give min/opt/max, none smaller than the one before")
        return cls(*shapes)

    def shapes(self, axes: Sequence[int | str], multiple: int) -> list[tuple[int, ...]]:
        """The three shapes of a tensor with `axes` (see `TensorSpec`); `h` and `w` count the network's `multiple`."""
        return [tuple(_side(axis, shape, multiple) for axis in axes) for shape in self.all]

    def holds(self, shape: Shape) -> Shape:
        """The shape nearest to `shape` that the engine takes."""
        sides = [min(max(a, b), c) for a, b, c in zip(self.minimum, shape, self.maximum, strict=True)]
        return sides[0], sides[1], sides[2]

    @property
    def all(self) -> tuple[Shape, Shape, Shape]:
        """Minimum, optimum and maximum."""
        return self.minimum, self.optimum, self.maximum


def _side(axis: int | str, shape: Shape, multiple: int) -> int:
    if isinstance(axis, int):
        return axis
    n, height, width = shape
    sides = {"N": n, "H": height, "W": width, "h": -(-height // multiple), "w": -(-width // multiple)}
    return int(axis[:-1] or 1) * sides[axis[-1]]


def library(target: Target) -> Any:
    """The Python module of a target; `ExportError` that says what is missing and what it takes."""
    try:
        module = importlib.import_module(target.replace("-", "_"))
    except ImportError as error:
        how = (
            "pip install 'nst[tensorrt]' (Linux on x86-64)"
            if target == "tensorrt-rtx"
            else "pip install tensorrt from NVIDIA's package index, or use --target tensorrt-rtx"
        )
        raise ExportError(f"--target {target} needs the package {target}, which is not installed: {how}") from error
    if target == "tensorrt" and not torch.cuda.is_available():
        raise ExportError(
            "--target tensorrt builds for the GPU at hand, and here is none that PyTorch sees; "
            "--target tensorrt-rtx builds on any machine for the GPUs that --compute-capability names"
        )
    return module


def capabilities(names: str | None) -> list[str]:
    """`8.9,12.0` as TensorRT's names SM89 and SM120; None is every one that it knows. Raises `InputError`."""
    trt = library("tensorrt-rtx")
    known = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    known.sort(key=lambda name: int(name[2:]))
    if names is None:
        return known
    asked = [f"SM{name.strip().replace('.', '')}" for name in names.split(",")]
    if unknown := [name for name in asked if name not in known]:
        numbers = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in known)
        raise InputError(f"--compute-capability has {unknown[0][2:]!r}: TensorRT-RTX {trt.__version__} knows {numbers}")
    return asked


def build(
    file: Path, target: Target, profile: Profile, multiple: int, *, devices: Sequence[str] = (), cache: Path
) -> tuple[bytes, dict[str, Any]]:
    """Parse an ONNX file and build an engine; the engine, and what is in it.

    `devices` are names that `capabilities` gives, for `tensorrt-rtx`. `cache` is a folder for timings, used by
    `tensorrt`. Raises `ExportError` with TensorRT's own words.
    """
    trt = library(target)
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(file.read_bytes()):
        reasons = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise ExportError(f"{target} cannot read the exported graph: {reasons}")
    config = builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    for position in range(network.num_inputs):
        tensor = network.get_input(position)
        symbols = [
            size if size >= 0 else tensor.get_dimension_name(axis) for axis, size in enumerate(tuple(tensor.shape))
        ]
        shapes.set_shape(tensor.name, *profile.shapes(symbols, multiple))
    config.add_optimization_profile(shapes)
    config.clear_flag(trt.BuilderFlag.TF32)  # eleven bits are FP16's precision, not FP32's
    if devices:
        config.num_compute_capabilities = len(devices)
        for position, name in enumerate(devices):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), position)
        plan = builder.build_serialized_network(network, config)
    else:
        with _timing_cache(config, cache / f"tensorrt-{trt.__version__}-{torch.cuda.get_device_name()}.cache"):
            plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"{target} could not build an engine: {'; '.join(logger.errors) or 'it gave no reason'}")
    return bytes(plan), _description(trt, network, profile, devices)


def _description(trt: Any, network: Any, profile: Profile, devices: Sequence[str]) -> dict[str, Any]:
    """What was parsed: layers, the types of their results, and the tensors at the borders."""
    kinds: dict[str, int] = {}
    for position in range(network.num_layers):
        layer = network.get_layer(position)
        for output in range(layer.num_outputs):
            kind = layer.get_output_type(output).name
            kinds[kind] = kinds.get(kind, 0) + 1
    borders = [network.get_input(at) for at in range(network.num_inputs)]
    borders += [network.get_output(at) for at in range(network.num_outputs)]
    return {
        "library": f"{trt.__name__} {trt.__version__}",
        "layers": network.num_layers,
        "results": kinds,
        "tensors": [f"{one.name} {one.dtype.name} {list(one.shape)}" for one in borders],
        "shapes": [list(shape) for shape in profile.all],
        "compute_capabilities": list(devices) or ["of the GPU that built it"],
    }


def _logger(trt: Any) -> Any:
    """A logger that keeps TensorRT's errors for our one line, and says nothing itself."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


@contextmanager
def _timing_cache(config: Any, path: Path) -> Iterator[None]:
    """TensorRT's measurements of earlier builds on this GPU, read before and kept after."""
    known = path.read_bytes() if path.is_file() else b""
    config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    yield
    with written_whole(path) as beside:
        beside.write_bytes(bytes(config.get_timing_cache().serialize()))


def cannot_run(devices: Sequence[str] = ()) -> str | None:
    """Why an engine for `devices` (see `build`; none: for the GPU at hand) does not run here; None where it may."""
    if not torch.cuda.is_available():
        return "no GPU on this machine"
    if devices and own_capability() not in devices:
        return f"it is not for this machine's GPU ({torch.cuda.get_device_name()}, {own_capability()})"
    return None


def own_capability() -> str:
    """The GPU at hand by TensorRT's name of its compute capability, such as SM89."""
    major, minor = torch.cuda.get_device_capability()
    return f"SM{major}{minor}"


def running(plan: bytes, target: Target) -> Engine:
    """An engine on this machine's GPU. Raises `ExportError` if it cannot run here."""
    trt = library(target)
    if reason := cannot_run():
        raise ExportError(f"an engine cannot be run here, {reason}: do it on one of the GPUs it was built for")
    logger = _logger(trt)
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise ExportError(f"{target} refuses this engine on this GPU: {'; '.join(logger.errors)}")
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(at) for at in range(engine.num_io_tensors)]
    outputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]

    def run(feeds: Feeds) -> tuple[Any, bool | None]:
        tensors = {name: torch.from_numpy(feeds[name]).cuda().contiguous() for name in names if name in feeds}
        for name, tensor in tensors.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise ExportError(
                    f"{name} {tuple(tensor.shape)} is outside of the shapes that the engine was built for"
                )
        kinds = {"UINT8": torch.uint8, "FLOAT": torch.float32}
        for name in outputs:
            kind = kinds[engine.get_tensor_dtype(name).name]
            tensors[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=kind, device="cuda")
        for name, tensor in tensors.items():
            context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        if not context.execute_async_v3(stream.cuda_stream):
            raise ExportError(f"{target} failed while it ran: {'; '.join(logger.errors)}")
        stream.synchronize()
        answer: np.ndarray[Any, Any] = tensors[outputs[0]].cpu().numpy()
        return answer, None

    return Engine(f"{target} on {torch.cuda.get_device_name()}", run)
