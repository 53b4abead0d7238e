"""Run the models of a repository in this process with ONNX Runtime or TensorRT, without a server."""

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

from nst_client.errors import Rejected, ServiceError
from nst_client.transports import buffers
from nst_client.transports.base import Array, ModelConfig, Request
from nst_client.transports.coroutines import in_thread
from nst_client.transports.grpc_library import model_config_pb2
from nst_client.transports.statistics import Statistics
from nst_core.contract import IMAGE, STYLIZED, Parameter
from nst_core.devices import Gpu, gpus
from nst_core.errors import InputError, MissingExtra, NstError
from nst_core.packages.onnx_runtime import import_onnxruntime

CPU_PROVIDER, OPENVINO_PROVIDER, CUDA_PROVIDER = (
    "CPUExecutionProvider",
    "OpenVINOExecutionProvider",
    "CUDAExecutionProvider",
)

OPENVINO_CONFIG = '{"CPU": {"CPU_RUNTIME_CACHE_CAPACITY": "500"}}'
"""Limits OpenVINO's cache as the server's backend does: the default, 5000 shapes per layer, takes too much memory."""

log = logging.getLogger(__name__)

kept_after_fork: list[Any] = []
"""The parent's models, in a forked process, which must not close them."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory. If it is `fragile`, it must be loaded again after a failed run."""

    run: Callable[[Request], Array]
    close: Callable[[], None]
    fragile: bool = False


class LocalTransport:
    """A `Transport` without a server. With `aio` the models run in threads and do not block the event loop.

    A run cannot be stopped, so the timeout has no effect.
    """

    def __init__(self, repository: Path, *, aio: bool = False, threads: int | None = None) -> None:
        """Open a model repository; models are loaded with their first request.

        `threads` is the number of threads per model; by default each model's config decides. Raises `MissingExtra`,
        or `InputError` if the folder is missing or two packages contain ONNX Runtime.
        """
        onnxruntime = import_onnxruntime("local")
        if not repository.is_dir():
            raise InputError(
                f"{repository}: no such model repository; create it with nst export style.pth -r {repository}"
            )
        self.address = f"local:{repository}"
        self.repository, self.onnxruntime, self.aio, self.threads = repository, onnxruntime, aio, threads
        self._reset()

    def _reset(self) -> None:
        self.loaded: dict[str, LoadedModel] = {}
        self.loading = threading.Lock()
        self._process = os.getpid()

    def _reset_after_fork(self) -> None:
        """Forget the models in a forked process, which lacks their threads; they are loaded again."""
        if self._process != os.getpid():
            kept_after_fork.append(self.loaded)  # closing them might wait for those threads
            self._reset()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings alone: a copy loads the models itself."""
        return partial(LocalTransport, self.repository, aio=self.aio, threads=self.threads), ()

    async def models(self, seconds: float) -> list[str]:
        """See `Transport`."""
        return sorted(path.parent.name for path in self.repository.glob("*/config.pbtxt"))

    async def config(self, model: str, seconds: float) -> ModelConfig:
        """See `Transport`. Raises `InputError` for a model for GPUs on a machine without a GPU."""
        config = self._config(model)
        if _for_gpu(config):
            self._gpu(model)
        return ModelConfig(
            {name: entry.string_value for name, entry in config.parameters.items()}, config.max_batch_size
        )

    async def infer(self, request: Request, seconds: float) -> Array:
        """See `Transport`.

        A model for GPUs runs there with TensorRT, whose plan is built once, or with ONNX Runtime's CUDA provider. A
        model for the CPU runs with OpenVINO if the config asks for it and it is installed, else with ONNX Runtime's
        CPU provider.
        """
        return await in_thread(self._run, request, aio=self.aio)

    async def statistics(self, model: str, seconds: float) -> Statistics:
        """Raise `ServiceError`: only servers count requests."""
        raise ServiceError(f"{self.address} has no statistics; ask a server at grpc:// or http://")

    async def close(self) -> None:
        """See `Transport`."""
        self._reset_after_fork()
        while self.loaded:
            self.loaded.popitem()[1].close()

    @property
    def wants_gpu(self) -> bool:
        """Whether a model of the repository was exported for GPUs."""
        return any(_for_gpu(config) for config in self._readable_configs())

    def _readable_configs(self) -> Iterator[model_config_pb2.ModelConfig]:
        for path in self.repository.glob("*/config.pbtxt"):
            with suppress(ServiceError):
                yield self._config(path.parent.name)

    def _run(self, request: Request) -> Array:
        self._reset_after_fork()
        with self.loading:
            if request.model not in self.loaded:
                self.loaded[request.model] = self._load(request.model)
            model = self.loaded[request.model]
        try:
            return model.run(request)
        except Exception as error:  # ONNX Runtime's exceptions have no common root
            if model.fragile:
                self.loaded.pop(request.model, None)
            raise Rejected(f"{request.model} failed: {_one_line(error)}") from error

    def _config(self, model: str) -> model_config_pb2.ModelConfig:
        file = self.repository / model / "config.pbtxt"
        try:
            return text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
        except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ServiceError(
                f"cannot read the model config {file} ({_one_line(reason)}); export the model again"
            ) from error

    def _gpu(self, model: str) -> Gpu:
        """Return the GPU for a model. Raises `InputError` on a machine without one."""
        found, missing = gpus()
        if not found:
            raise InputError(
                f"{self.address}: model {model} needs an NVIDIA GPU, which is missing here ({missing}); "
                "export it with nst export --device cpu, or call a server that has a GPU (grpc://host:8001)"
            )
        return found[0]

    def _load(self, model: str) -> LoadedModel:
        versions = [path for path in (self.repository / model).glob("*") if path.name.isdigit()]
        if not versions:
            raise ServiceError(f"{self.repository / model} has no version of the model; export it again")
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
        except Exception as error:  # the libraries' errors have no common root
            reason = f"its config lacks {str(error.args[0])!r}" if isinstance(error, KeyError) else _one_line(error)
            raise ServiceError(f"cannot load {version}: {reason}") from error

    def _on_cpu(self, version: Path, config: model_config_pb2.ModelConfig) -> LoadedModel:
        threads = self._threads(config)
        provider: tuple[str, dict[str, str]] = (CPU_PROVIDER, {})
        accelerators = config.optimization.execution_accelerators.cpu_execution_accelerator
        wants_openvino = any(accelerator.name == "openvino" for accelerator in accelerators)
        if wants_openvino and OPENVINO_PROVIDER in self.onnxruntime.get_available_providers():
            provider = (
                OPENVINO_PROVIDER,
                {"device_type": "CPU", "num_of_threads": str(threads), "load_config": OPENVINO_CONFIG},
            )
        session = self.onnxruntime.InferenceSession(
            str(version / "model.onnx"), self._options(threads), providers=[provider]
        )

        def run(request: Request) -> Array:
            output: Array = session.run([request.output], dict(request.inputs))[0]
            return output

        log.info("%s: version %s with %s, %d threads", config.name, version.name, provider[0], threads)
        # After a failure, OpenVINO also fails the next request of the same shape.
        return LoadedModel(run, lambda: None, fragile=True)

    def _by_cuda(self, version: Path, config: model_config_pb2.ModelConfig) -> LoadedModel:
        from nst_core.engines.onnx_cuda import CudaSessions

        if CUDA_PROVIDER not in self.onnxruntime.get_available_providers():
            raise MissingExtra("gpu", "onnxruntime-gpu")
        sessions = CudaSessions(version / "model.onnx", session_options=self._options(self._threads(config)))
        log.info("%s: version %s with %s", config.name, version.name, CUDA_PROVIDER)
        return LoadedModel(lambda request: sessions.run(request.inputs, [request.output])[0], sessions.close)

    def _options(self, threads: int) -> Any:
        options = self.onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        return options

    def _threads(self, config: model_config_pb2.ModelConfig) -> int:
        return int(self.threads or config.parameters["intra_op_thread_count"].string_value or os.cpu_count() or 1)


def _by_tensorrt(version: Path, config: model_config_pb2.ModelConfig, gpu: Gpu) -> LoadedModel:
    """Load the plan from the cache, or build it, which takes seconds to minutes, and cache it."""
    from nst_core.engines import building, plans
    from nst_core.engines.tensorrt import TensorRTEngine

    announced = False

    def on_progress(done: float, note: str) -> None:
        nonlocal announced
        if not announced:
            log.warning(
                "%s: building the TensorRT plan for %s, once; it is cached in %s",
                config.name,
                gpu.name,
                plans.cache_folder(),
            )
        announced = True

    parameters = {name: entry.string_value for name, entry in config.parameters.items()}
    plan = building.ensure(
        version,
        plans.Profile.parse(parameters[Parameter.PROFILE]),
        int(parameters[Parameter.MULTIPLE]),
        library=plans.import_tensorrt(),
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        on_progress=on_progress,
    )
    engine = TensorRTEngine(plan)
    log.info("%s: version %s with TensorRT on %s (%s)", config.name, version.name, gpu.name, plan)

    def run(request: Request) -> Array:
        out = buffers.empty(request.inputs[IMAGE].shape) if request.output == STYLIZED else None
        return engine.run(request.inputs, out)

    return LoadedModel(run, engine.close)


def _one_line(error: object) -> str:
    """Return a library's message as a single line."""
    return " ".join(str(error).split())


def _for_gpu(config: model_config_pb2.ModelConfig) -> bool:
    return any(group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU for group in config.instance_group)
