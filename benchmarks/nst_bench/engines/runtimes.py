"""ONNX Runtime and TensorRT in-process.

Those for a GPU are the engines that the server's backends run (`nst_core.engines`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nst_bench.engines.base import MissingEngine, Stylize
from nst_bench.served.exported import ExportedModel
from nst_core import devices
from nst_core.contract import IMAGE, STYLE_WEIGHTS, STYLIZED, Parameter
from nst_core.devices import Gpu
from nst_core.distribution import install_command
from nst_core.images import Pixels
from nst_core.packages.onnx_runtime import import_onnxruntime, machine_extra

CPU_PROVIDER, OPENVINO_PROVIDER = "CPUExecutionProvider", "OpenVINOExecutionProvider"
TENSORRT_PROVIDER, CUDA_PROVIDER = "TensorrtExecutionProvider", "CUDAExecutionProvider"

TENSORRT_CONTEXTS = 2
"""Images that TensorRT stylizes concurrently."""


def onnx_runtime(
    file: Path, provider: str, styles: int, threads: int, settings: dict[str, str] | None = None
) -> Stylize:
    """Return a session of `file` on one execution provider. Raises `MissingEngine`."""
    onnxruntime = _onnxruntime_with(provider)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if provider == OPENVINO_PROVIDER:
        settings = {"device_type": "CPU", "num_of_threads": str(threads)}
    session = onnxruntime.InferenceSession(str(file), options, providers=[(provider, settings or {})])
    if session.get_providers()[0] != provider:
        raise MissingEngine(f"ONNX Runtime could not start {provider}; check its device and driver")
    return _stylizing(lambda feeds: session.run([STYLIZED], feeds)[0], styles)


def onnx_runtime_cuda(file: Path, styles: int) -> Stylize:
    """Return `file` on ONNX Runtime's CUDA provider with one session per shape, as the server's backend runs it."""
    _first_gpu()
    from nst_core.engines.onnx_cuda import CudaSessions

    _onnxruntime_with(CUDA_PROVIDER)
    sessions = CudaSessions(file)
    return _stylizing(lambda feeds: sessions.run(feeds, [STYLIZED])[0], styles)


def tensorrt_plan(exported: ExportedModel, *, on_progress: Callable[[str], None] = lambda note: None) -> Stylize:
    """Return the plan of a model exported for TensorRT, cached or built as by `nst serve`. Raises `MissingEngine`."""
    gpu = _first_gpu()
    if exported.config.backend != "tensorrt":
        raise MissingEngine(f"{exported.folder.name} is not exported for TensorRT; run nst export --for tensorrt")
    from nst_core.engines import building, plans
    from nst_core.engines.tensorrt import TensorRTEngine

    try:
        plan = building.ensure(
            exported.version,
            plans.Profile.parse(exported.parameter(Parameter.PROFILE)),
            int(exported.parameter(Parameter.MULTIPLE)),
            library=plans.import_tensorrt(),
            gpu=gpu.name,
            compute_capability=gpu.compute_capability,
            on_progress=lambda done, note: on_progress(f"building the TensorRT plan, {done:.0%}: {note}"),
        )
        engine = TensorRTEngine(plan, contexts=TENSORRT_CONTEXTS)
    except (ValueError, RuntimeError) as error:  # a profile, a plan or CUDA
        raise MissingEngine(" ".join(str(error).split())) from error
    return _stylizing(engine.run, len(exported.styles))


def _stylizing(run: Callable[[dict[str, Any]], Any], styles: int) -> Stylize:
    """Return a function that stylizes one image with `run`, in the first of several styles."""
    style_weights = {STYLE_WEIGHTS: np.eye(1, styles, dtype=np.float32)} if styles > 1 else {}

    def stylize(pixels: Pixels) -> Pixels:
        result: Pixels = run({IMAGE: pixels[None], **style_weights})[0]
        return result

    return stylize


def _first_gpu() -> Gpu:
    """Return the first GPU that this process may use. Raises `MissingEngine`."""
    found, reason = devices.gpus()
    if not found:
        raise MissingEngine(reason)
    return found[0]


def _onnxruntime_with(provider: str) -> Any:
    """Return the module `onnxruntime` if it has this execution provider. Raises `MissingEngine`."""
    onnxruntime = import_onnxruntime("bench")
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise MissingEngine(
            f"ONNX Runtime {onnxruntime.__version__} has no {provider} (it has {', '.join(available)}); "
            f"run {install_command(machine_extra('bench'))}"
        )
    return onnxruntime
