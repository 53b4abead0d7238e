"""ONNX Runtime in this process, on the models of a repository: no server at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from nst_client.coroutines import worked
from nst_client.errors import Rejected, ServiceError
from nst_client.statistics import Statistics
from nst_client.transports import Array, ModelConfig, Request
from nst_core.errors import InputError, MissingExtra

OPENVINO_CONFIG = '{"CPU": {"CPU_RUNTIME_CACHE_CAPACITY": "500"}}'
"""As the server's backend has it: memory for so many shapes of each layer, not for OpenVINO's own 5000."""


class Local:
    """A `Transport` without a server; with `aio` the models run in threads, and the loop goes on.

    A run cannot be stopped: the seconds that it may take are not looked at.
    """

    def __init__(self, repository: Path, *, aio: bool = False, threads: int | None = None) -> None:
        """`threads` is how many a model computes with, in place of what its config says.

        Raises `MissingExtra`, or `InputError` where there is no such folder.
        """
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise MissingExtra("local", "onnxruntime") from error
        if not repository.is_dir():
            raise InputError(
                f"{repository}: no such model repository; make one with nst-export style.pth -r {repository}"
            )
        self.address = f"local:{repository}"
        self.repository, self.onnxruntime, self.aio, self.threads = repository, onnxruntime, aio, threads
        self.sessions: dict[str, Any] = {}
        self.opening = threading.Lock()

    async def models(self, seconds: float) -> list[str]:
        """See `Transport`."""
        return sorted(path.parent.name for path in self.repository.glob("*/config.pbtxt"))

    async def config(self, model: str, seconds: float) -> ModelConfig:
        """See `Transport`."""
        config = self._config(model)
        return ModelConfig(
            {name: entry.string_value for name, entry in config.parameters.items()}, config.max_batch_size
        )

    async def infer(self, request: Request, seconds: float) -> Array:
        """See `Transport`.

        On a GPU if the config asks for one and onnxruntime-gpu is installed, through OpenVINO likewise, else by ONNX
        Runtime's own means.
        """
        return await worked(self._run, request, aio=self.aio)

    async def statistics(self, model: str, seconds: float) -> Statistics:
        """Raises `ServiceError`: nobody counts."""
        raise ServiceError(f"{self.address} is no server, and keeps no statistics: ask one at grpc:// or http://")

    async def close(self) -> None:
        """See `Transport`."""
        self.sessions.clear()

    @property
    def wants_gpu(self) -> bool:
        """Whether a model of the repository was exported for GPUs (`nst-export --for gpu`)."""
        return any(_for_gpu(self._config(path.parent.name)) for path in self.repository.glob("*/config.pbtxt"))

    def _run(self, request: Request) -> Array:
        with self.opening:
            if request.model not in self.sessions:
                self.sessions[request.model] = self._session(request.model)
            session = self.sessions[request.model]
        try:
            answer: Array = session.run([request.output], dict(request.inputs))[0]
        except Exception as error:  # ONNX Runtime's exceptions have no common root
            self.sessions.pop(request.model, None)  # OpenVINO's would fail the next request with this one's shape
            raise Rejected(f"{request.model} failed: {error}") from error
        return answer

    def _config(self, model: str) -> model_config_pb2.ModelConfig:
        file = self.repository / model / "config.pbtxt"
        try:
            return text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
        except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
            raise ServiceError(f"{file}: no model's config ({error})") from error

    def _session(self, model: str) -> Any:
        versions = [path for path in (self.repository / model).glob("*") if path.name.isdigit()]
        if not versions:
            raise ServiceError(f"{self.repository / model} holds no version of the model")
        file = max(versions, key=lambda path: int(path.name)) / "model.onnx"
        config = self._config(model)
        own = config.parameters["intra_op_thread_count"].string_value
        threads = str(self.threads or own or os.cpu_count() or 1)
        options = self.onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = int(threads)
        provider: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})
        wanted = [one.name for one in config.optimization.execution_accelerators.cpu_execution_accelerator]
        available = self.onnxruntime.get_available_providers()
        if _for_gpu(config) and "CUDAExecutionProvider" in available:
            provider = ("CUDAExecutionProvider", {})
        elif "openvino" in wanted and "OpenVINOExecutionProvider" in available:
            provider = (
                "OpenVINOExecutionProvider",
                {"device_type": "CPU", "num_of_threads": threads, "load_config": OPENVINO_CONFIG},
            )
        try:
            return self.onnxruntime.InferenceSession(str(file), options, providers=[provider])
        except Exception as error:  # as above
            raise ServiceError(f"{file} cannot be opened: {error}") from error


def _for_gpu(config: model_config_pb2.ModelConfig) -> bool:
    return any(group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU for group in config.instance_group)
