"""The gate on the GPU: the engine that will serve a model, against the model's FP32 graph on the CPU.

Building is not enough: TensorRT has built engines that moved the picture by two pixels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

import onnx as onnx_package

from nst_core.devices import Gpu
from nst_core.engines.plans import PlanError, Profile, Shape
from nst_core.packages.distribution import install_command
from nst_core.packages.onnx_runtime import import_onnxruntime, machine_extra
from nst_export import conversion as onnx
from nst_export import tensorrt
from nst_export import verification as verify
from nst_export.errors import ExportError
from nst_export.modules import INPUT, STYLE_WEIGHTS, TensorSpec
from nst_export.verification import Agreement, Engine, Limits

LIMITS = {"fp32": Limits(2, 60.0), "fp16": Limits(16, 50.0)}
"""By the precision of the convolutions. The levels are wider than on the CPU, since far more pixels are compared."""

CHECKED_PIXELS = 4 << 20
"""Pixels of the largest batch that is compared. The reference runs on the CPU, where the paper's network takes a GiB of
memory and seconds for a megapixel. Of a larger maximum fewer pictures are compared, then smaller ones."""

ODD = ((1, 333, 501), (1, 481, 271))
"""Odd sizes, landscape and portrait."""


def missing(target: tensorrt.Target | Literal["onnx"]) -> str | None:
    """What is not installed that running on a GPU takes, with the `pip install`; None if all is there."""
    try:
        bindings = importlib.util.find_spec("cuda.bindings")
    except ModuleNotFoundError:
        bindings = None
    if bindings is None:
        return f"the package cuda-bindings is not installed: {install_command(machine_extra('gpu'))}"
    if target != "onnx":
        return None
    runtime = import_onnxruntime()
    available = runtime.get_available_providers()
    if "CUDAExecutionProvider" in available:
        return None
    return (
        f"ONNX Runtime {runtime.__version__} here has no CUDAExecutionProvider (it has {', '.join(available)}): "
        f"{install_command(machine_extra('gpu'))} in an environment of its own"
    )


def check(
    engine: Engine, reference: Path, profile: Profile, multiple: int, limits: Limits, *, styles: int
) -> list[Agreement]:
    """Compare `engine` with the FP32 graph `reference` on photographs of all shapes that `shapes` gives.

    Of a network of several styles each style and mixes of them are compared. Raises `ExportError` that names all
    shapes that failed.
    """
    proto = onnx_package.load(reference)
    inputs = onnx.tensors(proto)
    truth = verify.session(reference, "CPUExecutionProvider")
    feeds = verify.examples(inputs, shapes(profile, inputs, multiple, styles))
    return verify.agreements(feeds, lambda feed: truth.run(None, feed)[0], [engine], limits, against="its FP32 graph")


def shapes(profile: Profile, inputs: Sequence[TensorSpec], multiple: int, styles: int) -> list[Shape]:
    """The profile's minimum, optimum and maximum, odd and small sizes and a full batch, within `CHECKED_PIXELS`.

    More batches follow until every one of `styles` and a mix have their row. Of textures, whose inputs are noise, the
    sides are multiples of `multiple`.
    """
    full = profile.maximum[0]
    wanted = [*profile.all, *ODD, (full, *profile.optimum[1:]), *verify.SMALL]
    chosen = list(dict.fromkeys(profile.holds(_within_pixels(profile.holds(shape))) for shape in wanted))
    while any(spec.name == STYLE_WEIGHTS for spec in inputs) and sum(batch for batch, _, _ in chosen) < styles + 2:
        chosen.append(profile.holds((full, 128, 96)))
    if all(spec.name != INPUT for spec in inputs):
        chosen = [verify.on_grid(shape, multiple) for shape in chosen]
    return chosen


def _within_pixels(shape: Shape) -> Shape:
    """The shape with fewer pictures, and then smaller ones, so that it has no more than `CHECKED_PIXELS`."""
    batch, height, width = shape
    batch = max(1, min(batch, CHECKED_PIXELS // (height * width)))
    shrunk = min(1.0, (CHECKED_PIXELS / (height * width)) ** 0.5)
    return batch, int(height * shrunk), int(width * shrunk)


@contextmanager
def tensorrt_engine(plan: bytes | Path, target: tensorrt.Target, gpu: Gpu) -> Iterator[Engine]:
    """A plan on this machine's GPU, until the block ends. Raises `ExportError` if TensorRT does not take or run it."""
    from nst_core.engines.cuda import CudaError
    from nst_core.engines.deserialized import EngineError
    from nst_core.engines.tensorrt import TensorRTEngine

    with (
        _failures(target, PlanError, EngineError, CudaError, ValueError),
        closing(TensorRTEngine(plan, contexts=1, library=tensorrt.library(target))) as running,
    ):
        yield Engine(
            f"{target} on {gpu.name}",
            lambda feeds: (running.run({name: feeds[name] for name in running.inputs}), None),
        )


@contextmanager
def cuda_engine(graph: Path, gpu: Gpu) -> Iterator[Engine]:
    """An ONNX file on ONNX Runtime's CUDA provider, as the server runs it; else as `tensorrt_engine`."""
    from nst_core.engines.onnx_cuda import CudaSessions

    name = onnx.output(onnx_package.load(graph)).name
    with (
        _failures("ONNX Runtime CUDA", RuntimeError),  # ONNX Runtime's own errors are of this class
        closing(CudaSessions(graph)) as sessions,
    ):
        yield Engine(f"ONNX Runtime CUDA on {gpu.name}", lambda feeds: (sessions.run(feeds, [name])[0], None))


@contextmanager
def _failures(engine: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn what an engine raises into `ExportError`."""
    try:
        yield
    except kinds as error:
        raise ExportError(f"{engine} failed on the GPU: {' '.join(str(error).split())}") from error
