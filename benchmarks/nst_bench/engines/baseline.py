"""A served model without its server: the baseline that every figure of serving is compared with."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nst_bench.engines.base import Stylize
from nst_bench.engines.runtimes import TENSORRT_CONTEXTS, onnx_runtime, onnx_runtime_cuda, tensorrt_plan
from nst_bench.measure import timed
from nst_bench.served.exported import ExportedModel
from nst_core.errors import InputError
from nst_core.images import Pixels


class Baseline:
    """The engine of a model's config in this process, with as many sessions as the server has instances.

    On a CPU that is ONNX Runtime with the config's provider and threads; on a GPU TensorRT or ONNX Runtime CUDA as the
    server's backends run them, images in main memory. Raises `InputError` for a config of another kind,
    `MissingEngine` for an engine that is not here.
    """

    def __init__(self, folder: Path) -> None:
        exported = ExportedModel(folder)
        comparable = ("onnxruntime", "tensorrt") if exported.device == "GPU" else ("onnxruntime",)
        if exported.config.backend not in comparable or not exported.config.instance_group:
            raise InputError(f"{folder.name} is served by {exported.config.backend}: nothing here to compare it with")
        self.threads: int | None = None
        if exported.device == "GPU":
            self.provider, self.sessions = _on_gpu(exported)
            return
        self.provider = exported.cpu_provider
        self.threads = int(exported.parameter("intra_op_thread_count") or os.cpu_count() or 1)
        self.sessions = [
            onnx_runtime(exported.model_file, self.provider, len(exported.styles), self.threads)
            for _ in range(exported.instances)
        ]

    def stylize(self, pixels: Pixels) -> Pixels:
        """`uint8 [H, W, 3]` through the first session."""
        return self.sessions[0](pixels)

    def seconds_for(self, pixels: Pixels, requests: int) -> float:
        """Seconds that all sessions at once take for `requests` images, which they share."""

        def work_through(position: int) -> None:
            for _ in range(position, requests, len(self.sessions)):
                self.sessions[position](pixels)

        with ThreadPoolExecutor(len(self.sessions)) as pool:
            return timed(lambda: list(pool.map(work_through, range(len(self.sessions)))))


def _on_gpu(exported: ExportedModel) -> tuple[str, list[Stylize]]:
    """The name of a GPU model's engine, and its sessions."""
    if exported.config.backend == "tensorrt":
        return "TensorRT", TENSORRT_CONTEXTS * [tensorrt_plan(exported)]
    styles = len(exported.styles)
    for accelerator in exported.config.optimization.execution_accelerators.gpu_execution_accelerator:
        if accelerator.name == "tensorrt":
            settings = {key: value for key, value in accelerator.parameters.items() if key.startswith("trt_")}
            settings["trt_fp16_enable"] = str(accelerator.parameters["precision_mode"] == "FP16")
            provider = "TensorrtExecutionProvider"
            return provider, [onnx_runtime(exported.model_file, provider, styles, 1, settings)]
    return "CUDAExecutionProvider", [onnx_runtime_cuda(exported.model_file, styles)]
