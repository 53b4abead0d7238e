"""Compare engines on the GPU with the model's FP32 graph on the CPU.

A successful build is not enough: TensorRT has built engines that shifted the image by two pixels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

import onnx

from nst_core.contract import IMAGE, STYLE_WEIGHTS
from nst_core.devices import Gpu
from nst_core.distribution import install_command
from nst_core.engines.plans import PlanError, Profile, Shape
from nst_core.packages.onnx_runtime import import_onnxruntime, machine_extra
from nst_export.errors import ExportError
from nst_export.graph.conversion import input_specs, output_spec
from nst_export.modules import TensorSpec
from nst_export.tensorrt import Library, import_tensorrt
from nst_export.verification.agreement import Agreement, Engine, Tolerance, require_agreement
from nst_export.verification.cpu import open_session
from nst_export.verification.examples import MANY_STYLES_SIZE, SMALL_SHAPES, example_feeds, round_up_to_grid

GPU_TOLERANCES = {"fp32": Tolerance(2, 60.0), "fp16": Tolerance(16, 50.0)}
"""Tolerances by the precision of the convolutions, larger than on the CPU, since far more values are compared."""

MAXIMUM_COMPARED_PIXELS = 4 << 20
"""Maximum pixels of a compared batch. The reference runs on the CPU, where the paper's network takes a GiB of memory
and seconds per megapixel. A larger profile is compared with fewer, then with smaller images."""

ODD_SHAPES = ((1, 333, 501), (1, 481, 271))
"""Odd sizes, landscape and portrait."""


def missing_packages(target: Library | Literal["onnx"]) -> str | None:
    """Return which package is missing to run on a GPU, with the `pip install`; None if all are installed."""
    try:
        bindings = importlib.util.find_spec("cuda.bindings")
    except ModuleNotFoundError:
        bindings = None
    if bindings is None:
        return f"the package cuda-bindings is not installed; run {install_command(machine_extra('gpu'))}"
    if target != "onnx":
        return None
    runtime = import_onnxruntime()
    available = runtime.get_available_providers()
    if "CUDAExecutionProvider" in available:
        return None
    return (
        f"ONNX Runtime {runtime.__version__} has no CUDAExecutionProvider here (only {', '.join(available)}); "
        f"run {install_command(machine_extra('gpu'))} in a separate environment"
    )


def verify_on_gpu(
    engine: Engine, reference: Path, profile: Profile, multiple: int, tolerance: Tolerance, *, styles: int
) -> list[Agreement]:
    """Compare `engine` with the FP32 graph `reference` on the CPU, at all shapes of `gpu_shapes`.

    Raises as `require_agreement` does.
    """
    proto = onnx.load(reference)
    inputs = input_specs(proto)
    session = open_session(reference, "CPUExecutionProvider")
    feeds = example_feeds(inputs, gpu_shapes(profile, inputs, multiple, styles))
    return require_agreement(
        feeds, lambda feed: session.run(None, feed)[0], [engine], tolerance, against="its FP32 graph"
    )


def gpu_shapes(profile: Profile, inputs: Sequence[TensorSpec], multiple: int, styles: int) -> list[Shape]:
    """Return the profile's minimum, optimum and maximum, odd and small sizes and a full batch, within the limits.

    Batches are added until there is an image for each of `styles` and for an interpolation. Sides of textures, whose
    inputs are noise, are multiples of `multiple`.
    """
    batch = profile.maximum[0]
    wanted = [*profile.all, *ODD_SHAPES, (batch, *profile.optimum[1:]), *SMALL_SHAPES]
    shapes = list(dict.fromkeys(profile.holds(_within_compared_pixels(profile.holds(shape))) for shape in wanted))
    has_styles = any(spec.name == STYLE_WEIGHTS for spec in inputs)
    while has_styles and sum(n for n, _, _ in shapes) < styles + 2:
        shapes.append(profile.holds((batch, *MANY_STYLES_SIZE)))
    if all(spec.name != IMAGE for spec in inputs):
        shapes = [round_up_to_grid(shape, multiple) for shape in shapes]
    return shapes


def _within_compared_pixels(shape: Shape) -> Shape:
    """Reduce the batch, and then the sides, to at most `MAXIMUM_COMPARED_PIXELS`."""
    batch, height, width = shape
    batch = max(1, min(batch, MAXIMUM_COMPARED_PIXELS // (height * width)))
    factor = min(1.0, (MAXIMUM_COMPARED_PIXELS / (height * width)) ** 0.5)
    return batch, int(height * factor), int(width * factor)


@contextmanager
def tensorrt_engine(plan: bytes | Path, library: Library, gpu: Gpu) -> Iterator[Engine]:
    """Load a plan on this machine's GPU, within the block; raises `ExportError` if TensorRT cannot load or run it."""
    from nst_core.engines.cuda import CudaError
    from nst_core.engines.deserialized import EngineError
    from nst_core.engines.tensorrt import TensorRTEngine

    with (
        _as_export_error(library, PlanError, EngineError, CudaError, ValueError),
        closing(TensorRTEngine(plan, contexts=1, library=import_tensorrt(library))) as running,
    ):
        yield Engine(
            f"{library} on {gpu.name}",
            lambda feeds: (running.run({name: feeds[name] for name in running.inputs}), None),
        )


@contextmanager
def cuda_engine(graph: Path, gpu: Gpu) -> Iterator[Engine]:
    """Load an ONNX file with ONNX Runtime's CUDA provider, as the server does, within the block.

    Raises `ExportError` if ONNX Runtime cannot load or run it.
    """
    from nst_core.engines.onnx_cuda import CudaSessions

    name = output_spec(onnx.load(graph)).name
    with (
        _as_export_error("ONNX Runtime CUDA", RuntimeError),  # ONNX Runtime's own errors are of this class
        closing(CudaSessions(graph)) as sessions,
    ):
        yield Engine(f"ONNX Runtime CUDA on {gpu.name}", lambda feeds: (sessions.run(feeds, [name])[0], None))


@contextmanager
def _as_export_error(engine: str, *kinds: type[Exception]) -> Iterator[None]:
    """Raise `ExportError` for errors of these kinds."""
    try:
        yield
    except kinds as error:
        raise ExportError(f"{engine} failed on the GPU: {' '.join(str(error).split())}") from error
