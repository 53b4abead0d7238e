"""The in-process engines that are compared with each other and with the server."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nst_bench.engines import runtimes
from nst_bench.engines.base import MissingEngine, Stylize
from nst_bench.engines.pytorch import pytorch_compiled, pytorch_cuda_graph, pytorch_eager
from nst_bench.served.exported import ExportedModel
from nst_core.devices import Device
from nst_trainer.networks import StyledNetwork

OTHER_DEVICE = "this run measures the GPU; use --device cpu for the CPU's engines"
"""Why an engine for the CPU is missing in a run on a GPU."""


@dataclass(frozen=True)
class Engine:
    """An engine; `load` returns it or raises `MissingEngine`, and `device` is `CPU` or `GPU`.

    `compiles` says that every new shape takes seconds, so that it is measured with as few shapes as possible.
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
    """Return all in-process engines: PyTorch with `network`, the others with its export.

    Engines of the other device raise `MissingEngine` when they are loaded.
    """
    styles, tensorrt = len(exported.styles), f"TensorRT, {exported.precision.upper()}"

    def on_cpu(provider: str) -> Stylize:
        return runtimes.onnx_runtime(_fp32_graph(exported), provider, styles, os.cpu_count() or 1)

    found = [
        Engine("PyTorch eager", "CPU", partial(pytorch_eager, network, "CPU")),
        Engine("PyTorch compiled", "CPU", partial(pytorch_compiled, network, "CPU"), compiles=True),
        Engine("ONNX Runtime", "CPU", partial(on_cpu, runtimes.CPU_PROVIDER)),
        Engine("ONNX Runtime, OpenVINO", "CPU", partial(on_cpu, runtimes.OPENVINO_PROVIDER)),
        Engine("PyTorch eager", "GPU", partial(pytorch_eager, network, "GPU")),
        Engine("PyTorch, CUDA graph, FP16", "GPU", partial(pytorch_cuda_graph, network)),
        Engine("PyTorch compiled", "GPU", partial(pytorch_compiled, network, "GPU"), compiles=True),
        Engine("ONNX Runtime, CUDA, FP32", "GPU", lambda: runtimes.onnx_runtime_cuda(_fp32_graph(exported), styles)),
        Engine(tensorrt, "GPU", partial(runtimes.tensorrt_plan, exported, on_progress=on_progress)),
    ]
    here, reason = ("GPU", OTHER_DEVICE) if device.gpu else ("CPU", device.reason)
    return [engine if engine.device == here else replace(engine, load=partial(_refuse, reason)) for engine in found]


def _fp32_graph(exported: ExportedModel) -> Path:
    if exported.fp32_graph is None:
        raise MissingEngine(f"{exported.version} has no FP32 graph")
    return exported.fp32_graph


def _refuse(reason: str) -> Stylize:
    raise MissingEngine(reason)
