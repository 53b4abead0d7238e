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
class Contestant:
    """An engine that `load` loads, or that raises `MissingEngine`; `device` is `CPU` or `GPU`.

    `compiles`: it takes seconds for every new shape, so it is measured with as few shapes as possible.
    """

    name: str
    device: str
    load: Callable[[], Stylize]
    compiles: bool = False


def contestants(
    network: StyledNetwork,
    exported: ExportedModel,
    device: Device,
    *,
    on_progress: Callable[[str], None] = lambda note: None,
) -> list[Contestant]:
    """Every engine that could run in this process: PyTorch with `network`, the others with its export.

    The engines of the other device refuse to load, and say why.
    """
    found = [
        Contestant("PyTorch eager", "CPU", partial(pytorch_eager, network, "CPU")),
        Contestant("PyTorch compiled", "CPU", partial(pytorch_compiled, network, "CPU"), compiles=True),
        Contestant("ONNX Runtime", "CPU", partial(_on_cpu, exported, "CPUExecutionProvider")),
        Contestant("ONNX Runtime, OpenVINO", "CPU", partial(_on_cpu, exported, "OpenVINOExecutionProvider")),
        Contestant("PyTorch eager", "GPU", partial(pytorch_eager, network, "GPU")),
        Contestant("PyTorch, CUDA graph, FP16", "GPU", partial(pytorch_cuda_graph, network)),
        Contestant("PyTorch compiled", "GPU", partial(pytorch_compiled, network, "GPU"), compiles=True),
        Contestant("ONNX Runtime, CUDA, FP32", "GPU", partial(_on_cuda, exported)),
        Contestant(
            f"TensorRT, {exported.precision.upper()}",
            "GPU",
            partial(tensorrt_plan, exported, on_progress=on_progress),
        ),
    ]
    here, reason = ("GPU", OTHER_DEVICE) if device.gpu else ("CPU", device.reason)
    return [
        contestant if contestant.device == here else replace(contestant, load=partial(_refuse, reason))
        for contestant in found
    ]


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
