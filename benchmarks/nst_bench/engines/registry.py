"""The engines of this process that are compared with each other and with the server."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from nst_bench.engines.base import MissingEngine, Stylize
from nst_bench.engines.pytorch import pytorch_compiled, pytorch_cuda_graph, pytorch_eager
from nst_bench.engines.runtimes import onnx_runtime, onnx_runtime_cuda, tensorrt_plan
from nst_bench.served.exported import ExportedModel
from nst_core.devices import Device
from nst_trainer.networks import StyledNetwork

OTHER_DEVICE = "this run measures the GPU: --device cpu measures the processor's engines"
"""Why an engine of the processor is missing on a GPU."""


@dataclass(frozen=True)
class Engine:
    """An engine that `load` loads, or that raises `MissingEngine`; `device` is `CPU` or `GPU`.

    `compiles`: it takes seconds for every new shape, so it is measured with as few shapes as possible.
    """

    name: str
    device: str
    load: Callable[[], Stylize]
    compiles: bool = False


def every_engine(
    network: StyledNetwork,
    exported: ExportedModel,
    device: Device,
    *,
    on_progress: Callable[[str], None] = lambda note: None,
) -> list[Engine]:
    """Every engine that could run in this process: PyTorch with `network`, the others with its export.

    The engines of the other device refuse to load, and say why.
    """
    found = [
        Engine("PyTorch eager", "CPU", partial(pytorch_eager, network, "CPU")),
        Engine("PyTorch compiled", "CPU", partial(pytorch_compiled, network, "CPU"), compiles=True),
        Engine("ONNX Runtime", "CPU", partial(_on_cpu, exported, "CPUExecutionProvider")),
        Engine("ONNX Runtime, OpenVINO", "CPU", partial(_on_cpu, exported, "OpenVINOExecutionProvider")),
        Engine("PyTorch eager", "GPU", partial(pytorch_eager, network, "GPU")),
        Engine("PyTorch, CUDA graph, FP16", "GPU", partial(pytorch_cuda_graph, network)),
        Engine("PyTorch compiled", "GPU", partial(pytorch_compiled, network, "GPU"), compiles=True),
        Engine("ONNX Runtime, CUDA, FP32", "GPU", partial(_on_cuda, exported)),
        Engine(
            f"TensorRT, {exported.precision.upper()}",
            "GPU",
            partial(tensorrt_plan, exported, on_progress=on_progress),
        ),
    ]
    here, reason = ("GPU", OTHER_DEVICE) if device.gpu else ("CPU", device.reason)
    return [engine if engine.device == here else replace(engine, load=partial(_refuse, reason)) for engine in found]


def _on_cpu(exported: ExportedModel, provider: str) -> Stylize:
    if exported.fp32_graph is None:
        raise MissingEngine("there is no ONNX file of this model")
    return onnx_runtime(exported.fp32_graph, provider, len(exported.styles), os.cpu_count() or 1)


def _on_cuda(exported: ExportedModel) -> Stylize:
    if exported.fp32_graph is None:
        raise MissingEngine(f"{exported.version} keeps no FP32 graph")
    return onnx_runtime_cuda(exported.fp32_graph, len(exported.styles))


def _refuse(reason: str) -> Stylize:
    raise MissingEngine(reason)
