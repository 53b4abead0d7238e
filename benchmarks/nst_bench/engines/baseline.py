"""A served model without its server, the baseline of all serving figures."""

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
    """The engine of a model's config in this process, with one session per instance of the server.

    On a CPU this is ONNX Runtime with the config's execution provider and threads; on a GPU it is TensorRT or ONNX
    Runtime CUDA as the server's backends run them, with images in main memory. `threads` is the number per session,
    None on a GPU. Raises `InputError` for other configs, `MissingEngine` for an engine that is not installed.
    """

    def __init__(self, folder: Path) -> None:
        exported = ExportedModel(folder)
        config, styles = exported.config, len(exported.styles)
        on_gpu = exported.device == "GPU"
        comparable = ("onnxruntime", "tensorrt") if on_gpu else ("onnxruntime",)
        if config.backend not in comparable or not config.instance_group:
            raise InputError(
                f"{folder.name} uses the backend {config.backend!r}, which has no in-process counterpart; "
                "export it for another runtime"
            )
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
        """Stylize `uint8 [H, W, 3]` in the first session."""
        return self.sessions[0](pixels)

    def seconds_for(self, pixels: Pixels, requests: int) -> float:
        """Return the seconds that all sessions take together for `requests` images."""

        def work_through(position: int) -> None:
            for _ in range(position, requests, len(self.sessions)):
                self.sessions[position](pixels)

        with ThreadPoolExecutor(len(self.sessions)) as pool:
            return timed(lambda: list(pool.map(work_through, range(len(self.sessions)))))
