"""ONNX Runtime or TensorRT in this process, on the models of a repository: no server at all."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from nst_client.errors import Rejected, ServiceError
from nst_client.transports import buffers
from nst_client.transports.base import Array, ModelConfig, Request
from nst_client.transports.coroutines import in_thread
from nst_client.transports.statistics import Statistics
from nst_core.contract import IMAGE, STYLIZED
from nst_core.devices import Gpu, gpus
from nst_core.errors import InputError, MissingExtra, NstError
from nst_core.packages.onnx_runtime import import_onnxruntime

CUDA = "CUDAExecutionProvider"

log = logging.getLogger("nst_client")

_parents: list[Any] = []
"""Engines that a forked process has from its parent."""

OPENVINO_CONFIG = '{"CPU": {"CPU_RUNTIME_CACHE_CAPACITY": "500"}}'
"""As the server's backend has it: memory for so many shapes of each layer, not for OpenVINO's own 5000."""


@dataclass(frozen=True)
class LoadedModel:
    """An opened model. `fragile` if a failed run may spoil the next."""

    run: Callable[[Request], Array]
    close: Callable[[], None]
    fragile: bool = False


class LocalTransport:
    """A `Transport` without a server; with `aio` the models run in threads, and the loop goes on.

    A run cannot be stopped: the seconds that it may take are not looked at.
    """

    def __init__(self, repository: Path, *, aio: bool = False, threads: int | None = None) -> None:
        """`threads` is how many a model computes with, in place of what its config says.

        Raises `MissingExtra`, or `InputError` where there is no such folder or two packages hold ONNX Runtime.
        """
        onnxruntime = import_onnxruntime("local")
        if not repository.is_dir():
            raise InputError(
                f"{repository}: no such model repository; make one with nst-export style.pth -r {repository}"
            )
        self.address = f"local:{repository}"
        self.repository, self.onnxruntime, self.aio, self.threads = repository, onnxruntime, aio, threads
        self._begin()

    def _begin(self) -> None:
        self.engines: dict[str, LoadedModel] = {}
        self.opening = threading.Lock()
        self._process = os.getpid()

    def _leave_parents(self) -> None:
        """In a process that was forked from this one's own, open models anew: an engine's threads are the parent's."""
        if self._process != os.getpid():
            _parents.append(self.engines)  # whose end might wait for those threads
            self._begin()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, in another process too, opens the models itself."""
        return partial(LocalTransport, self.repository, aio=self.aio, threads=self.threads), ()

    async def models(self, seconds: float) -> list[str]:
        """See `Transport`."""
        return sorted(path.parent.name for path in self.repository.glob("*/config.pbtxt"))

    async def config(self, model: str, seconds: float) -> ModelConfig:
        """See `Transport`. Raises `InputError` for a model that is for a GPU where there is none."""
        config = self._config(model)
        if _for_gpu(config):
            self._gpu(model)
        return ModelConfig(
            {name: entry.string_value for name, entry in config.parameters.items()}, config.max_batch_size
        )

    async def infer(self, request: Request, seconds: float) -> Array:
        """See `Transport`.

        A model for a GPU runs there, by TensorRT, whose plan is built once, or ONNX Runtime's CUDA provider; one for
        the CPU by OpenVINO if the config asks for it and it is installed, else by ONNX Runtime's own means.
        """
        return await in_thread(self._run, request, aio=self.aio)

    async def statistics(self, model: str, seconds: float) -> Statistics:
        """Raises `ServiceError`: nobody counts."""
        raise ServiceError(f"{self.address} is no server, and keeps no statistics: ask one at grpc:// or http://")

    async def close(self) -> None:
        """See `Transport`."""
        self._leave_parents()
        while self.engines:
            self.engines.popitem()[1].close()

    @property
    def wants_gpu(self) -> bool:
        """Whether a model of the repository was exported for GPUs (`nst-export --for gpu`)."""
        return any(_for_gpu(config) for config in self._readable_configs())

    def _readable_configs(self) -> Iterator[model_config_pb2.ModelConfig]:
        for path in self.repository.glob("*/config.pbtxt"):
            with suppress(ServiceError):
                yield self._config(path.parent.name)

    def _run(self, request: Request) -> Array:
        self._leave_parents()
        with self.opening:
            if request.model not in self.engines:
                self.engines[request.model] = self._opened(request.model)
            engine = self.engines[request.model]
        try:
            return engine.run(request)
        except Exception as error:  # ONNX Runtime's exceptions have no common root
            if engine.fragile:
                self.engines.pop(request.model, None)
            raise Rejected(f"{request.model} failed: {_line(error)}") from error

    def _config(self, model: str) -> model_config_pb2.ModelConfig:
        file = self.repository / model / "config.pbtxt"
        try:
            return text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
        except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ServiceError(f"{file}: no model's config ({_line(reason)}); export the model again") from error

    def _gpu(self, model: str) -> Gpu:
        """The GPU to run a model on. Raises `InputError` where there is none."""
        found, missing = gpus()
        if not found:
            raise InputError(
                f"{self.address}: the model {model} is for an NVIDIA GPU and cannot run here: {missing}; export it for "
                "the CPU (nst-export --device cpu), or call a server that has a GPU (grpc://host:8001)"
            )
        return found[0]

    def _opened(self, model: str) -> LoadedModel:
        versions = [path for path in (self.repository / model).glob("*") if path.name.isdigit()]
        if not versions:
            raise ServiceError(f"{self.repository / model} holds no version of the model")
        version = max(versions, key=lambda path: int(path.name))
        config = self._config(model)
        gpu = self._gpu(model) if _for_gpu(config) else None
        try:
            if gpu is None:
                return self._on_cpu(version, config)
            if config.backend == "tensorrt":
                return _by_tensorrt(version, config, gpu)
            return self._by_cuda(version, config)
        except NstError:
            raise
        except Exception as error:  # theirs have no common root either
            reason = f"its config lacks {error}" if isinstance(error, KeyError) else _line(error)
            raise ServiceError(f"{version} cannot be opened: {reason}") from error

    def _on_cpu(self, version: Path, config: model_config_pb2.ModelConfig) -> LoadedModel:
        threads = self._threads(config)
        provider: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})
        wanted = [
            accelerator.name for accelerator in config.optimization.execution_accelerators.cpu_execution_accelerator
        ]
        if "openvino" in wanted and "OpenVINOExecutionProvider" in self.onnxruntime.get_available_providers():
            provider = (
                "OpenVINOExecutionProvider",
                {"device_type": "CPU", "num_of_threads": str(threads), "load_config": OPENVINO_CONFIG},
            )
        session = self.onnxruntime.InferenceSession(
            str(version / "model.onnx"), self._options(threads), providers=[provider]
        )

        def run(request: Request) -> Array:
            answer: Array = session.run([request.output], dict(request.inputs))[0]
            return answer

        # OpenVINO fails the next request of a shape as well, once it has failed with it.
        return LoadedModel(run, lambda: None, fragile=True)

    def _by_cuda(self, version: Path, config: model_config_pb2.ModelConfig) -> LoadedModel:
        from nst_core.engines.onnx_cuda import CudaSessions

        if CUDA not in self.onnxruntime.get_available_providers():
            raise MissingExtra("gpu", "onnxruntime-gpu")
        sessions = CudaSessions(version / "model.onnx", session_options=self._options(self._threads(config)))
        return LoadedModel(lambda request: sessions.run(request.inputs, [request.output])[0], sessions.close)

    def _options(self, threads: int) -> Any:
        options = self.onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        return options

    def _threads(self, config: model_config_pb2.ModelConfig) -> int:
        return int(self.threads or config.parameters["intra_op_thread_count"].string_value or os.cpu_count() or 1)


def _by_tensorrt(version: Path, config: model_config_pb2.ModelConfig, gpu: Gpu) -> LoadedModel:
    """With the plan that is there, else with one that is built now, which takes seconds to minutes and is kept."""
    from nst_core.engines import plans
    from nst_core.engines.tensorrt import TensorRTEngine

    building = False

    def on_progress(done: float, note: str) -> None:
        nonlocal building
        if not building:
            log.warning("%s: building the TensorRT plan for %s, once (%s)", config.name, gpu.name, plans.cache_folder())
        building = True

    parameters = {name: entry.string_value for name, entry in config.parameters.items()}
    plan = plans.ensure(
        version,
        plans.Profile.parse(parameters["profile"]),
        int(parameters["multiple"]),
        library=plans.tensorrt(),
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        on_progress=on_progress,
    )
    engine = TensorRTEngine(plan)

    def run(request: Request) -> Array:
        out = buffers.empty(request.inputs[IMAGE].shape) if request.output == STYLIZED else None
        return engine.run(request.inputs, out)

    return LoadedModel(run, engine.close)


def _line(error: object) -> str:
    """A library's words in one line."""
    return " ".join(str(error).split())


def _for_gpu(config: model_config_pb2.ModelConfig) -> bool:
    return any(group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU for group in config.instance_group)
