"""A served model without its server: the baseline that every figure of serving is compared with."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nst_bench.engines import runtimes
from nst_bench.measure import timed
from nst_bench.served.exported import ExportedModel
from nst_core.errors import InputError
from nst_core.images import Pixels


class Baseline:
    """The engine of a model's config in this process, with as many sessions as the server has instances.

    On a CPU that is ONNX Runtime with the config's provider and threads; on a GPU TensorRT or ONNX Runtime CUDA as the
    server's backends run them, images in main memory. `threads` are a session's, None on a GPU. Raises `InputError` for
    a config of another kind, `MissingEngine` for an engine that is not here.
    """

    def __init__(self, folder: Path) -> None:
        exported = ExportedModel(folder)
        config, styles = exported.config, len(exported.styles)
        on_gpu = exported.device == "GPU"
        comparable = ("onnxruntime", "tensorrt") if on_gpu else ("onnxruntime",)
        if config.backend not in comparable or not config.instance_group:
            raise InputError(f"{folder.name} is served by {config.backend}: nothing here to compare it with")
        accelerators = config.optimization.execution_accelerators
        self.threads: int | None = None
        if not on_gpu:
            openvino = any(own.name == "openvino" for own in accelerators.cpu_execution_accelerator)
            self.provider = runtimes.OPENVINO_PROVIDER if openvino else runtimes.CPU_PROVIDER
            self.threads = threads = int(exported.parameter("intra_op_thread_count") or os.cpu_count() or 1)
            self.sessions = [
                runtimes.onnx_runtime(exported.model_file, self.provider, styles, threads)
                for _ in range(sum(group.count for group in config.instance_group) or 1)
            ]
        elif config.backend == "tensorrt":
            self.provider, self.sessions = "TensorRT", runtimes.TENSORRT_CONTEXTS * [runtimes.tensorrt_plan(exported)]
        elif chosen := [own for own in accelerators.gpu_execution_accelerator if own.name == "tensorrt"]:
            parameters = chosen[0].parameters
            settings = {key: value for key, value in parameters.items() if key.startswith("trt_")}
            settings["trt_fp16_enable"] = str(parameters["precision_mode"] == "FP16")
            self.provider = runtimes.TENSORRT_PROVIDER
            self.sessions = [runtimes.onnx_runtime(exported.model_file, self.provider, styles, 1, settings)]
        else:
            self.provider = runtimes.CUDA_PROVIDER
            self.sessions = [runtimes.onnx_runtime_cuda(exported.model_file, styles)]

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
