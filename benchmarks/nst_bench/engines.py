"""What paints: PyTorch, ONNX Runtime and TensorRT in this process, and a Triton with one model."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nst_bench.exported import Exported
from nst_bench.gpu import (
    CONTEXTS,
    CudaGraphs,
    MissingEngine,
    Paint,
    by_cuda_sessions,
    by_tensorrt,
    without_cuda,
)
from nst_bench.measure import timed
from nst_core.contract import IMAGE, STYLE_WEIGHTS
from nst_core.devices import Device
from nst_core.distribution import install_command
from nst_core.errors import InputError
from nst_core.images import Pixels, fitted, open_image, sample_photographs
from nst_core.onnx_runtime import import_onnxruntime
from nst_export.export_plan import ExportPlan, runtime_for
from nst_export.modules import ServedModel
from nst_export.pipeline import export_checkpoint
from nst_server import triton
from nst_trainer.checkpoint import Checkpoint, frozen, save
from nst_trainer.networks import Johnson, StyledNetwork

STYLIZED = "stylized"

OTHER = "this run measures the GPU: --device cpu measures the processor's engines"
"""Why an engine of the processor is missing on a GPU."""


@dataclass(frozen=True)
class Engine:
    """An engine in this process. `load` raises `MissingEngine`.

    `compiles`: for every new shape, which takes seconds; it is not asked for more shapes than are needed.
    """

    name: str
    device: str
    load: Callable[[], Paint]
    compiles: bool = False


@dataclass(frozen=True)
class Served:
    """A running Triton of our own with one model: its repository, and how long it took to be ready, in seconds."""

    model: str
    repository: Path
    endpoints: triton.Endpoints
    process: subprocess.Popen[str]
    seconds: float

    @property
    def exported(self) -> Exported:
        """The model's files."""
        return Exported(self.repository / self.model)

    @property
    def style(self) -> str:
        """What a client calls the first of the model's styles."""
        styles = self.exported.styles
        return styles[0] if len(styles) > 1 else self.model


@contextmanager
def served(installation: triton.Installation, repository: Path, model: str) -> Iterator[Served]:
    """Triton on free ports of this machine with a copy of `model` alone, ready; ended with the block.

    Raises `InputError` when the repository lacks the model.
    """
    exported = Exported(repository / model)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "models"
        shutil.copytree(exported.folder, copy / model)
        endpoints = triton.Endpoints.free()
        started = time.perf_counter()
        with triton.running(installation, copy, endpoints, Path(scratch) / "triton.log") as process:
            yield Served(model, copy, endpoints, process, time.perf_counter() - started)


def untrained(width: float) -> Checkpoint:
    """Johnson's network of `width` with random weights: no engine looks at them, so it takes a trained one's time."""
    torch.manual_seed(0)
    return Checkpoint(frozen(Johnson(width=width)), (f"untrained-{width:g}",))


def publish(
    checkpoint: Checkpoint,
    folder: Path,
    device: Device | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """Export a checkpoint for `device`, the processor if not given, into the repository `folder`; the model's name."""
    name = checkpoint.styles[0]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"{name}.pth"
        save(checkpoint, file)
        export_checkpoint(file, name, folder, plan_for(device), on_progress=say)
    return name


def plan_for(device: Device | None) -> ExportPlan:
    """What `nst-export` makes for the device by default."""
    cores = os.cpu_count() or 1
    return ExportPlan(runtime=runtime_for(device), cores=cores) if device else ExportPlan(cores=cores)


def in_process(
    network: StyledNetwork, exported: Exported, device: Device, *, tick: Callable[[str], None] = lambda note: None
) -> list[Engine]:
    """Every engine that could run in this process: PyTorch with `network`, the others with its export.

    Those of the other device than `device` do not load, and say why.
    """
    file = exported.single
    engines = [
        Engine("PyTorch eager", "CPU", partial(by_pytorch, network, "CPU")),
        Engine("PyTorch compiled", "CPU", partial(by_compiled, network, "CPU"), compiles=True),
        Engine("ONNX Runtime", "CPU", partial(by_onnx_runtime, file, "CPUExecutionProvider")),
        Engine("ONNX Runtime, OpenVINO", "CPU", partial(by_onnx_runtime, file, "OpenVINOExecutionProvider")),
        Engine("PyTorch eager", "GPU", partial(by_pytorch, network, "GPU")),
        Engine("PyTorch, CUDA graph, FP16", "GPU", partial(by_cuda_graph, network)),
        Engine("PyTorch compiled", "GPU", partial(by_compiled, network, "GPU"), compiles=True),
        Engine("ONNX Runtime, CUDA, FP32", "GPU", partial(_by_cuda_sessions, file, exported)),
        Engine(f"TensorRT, {exported.precision.upper()}", "GPU", partial(by_tensorrt, exported, tick=tick)),
    ]
    here, reason = ("GPU", OTHER) if device.gpu else ("CPU", device.reason)
    return [one if one.device == here else replace(one, load=partial(_refused, reason)) for one in engines]


def _refused(reason: str) -> Paint:
    raise MissingEngine(reason)


def by_pytorch(network: StyledNetwork, device: str) -> Paint:
    """The network as it is trained, channels last, with the picture's arithmetic around it."""
    return _painting(_module(network, device), network, device)


def by_compiled(network: StyledNetwork, device: str) -> Paint:
    """The same through `torch.compile`, each shape by itself: its symbolic shapes do not take this padding."""
    module = _module(network, device)
    if device == "CPU" and not shutil.which(os.environ.get("CXX", "g++")):
        raise MissingEngine("torch.compile needs a C++ compiler (g++, or what CXX names), and none is here")
    paint = _painting(torch.compile(module, dynamic=False), network, device)

    def compiling(pixels: Pixels) -> Pixels:
        try:
            return paint(pixels)
        except Exception as error:  # its parts, and the compilers behind them, have no exception in common
            raise MissingEngine(f"torch.compile failed: {str(error).splitlines()[0]}") from error

    return compiling


def by_cuda_graph(network: StyledNetwork) -> Paint:
    """The same in FP16 by autocast, a CUDA graph a shape: what PyTorch can do without another engine."""
    return CudaGraphs(_module(network, "GPU"), _first_style(network, "GPU"))


def _module(network: StyledNetwork, device: str) -> ServedModel:
    if device == "GPU" and not torch.cuda.is_available():
        raise MissingEngine(without_cuda())
    placed = copy.deepcopy(network).to("cuda" if device == "GPU" else "cpu")
    return ServedModel(placed.to(memory_format=torch.channels_last)).eval()  # type: ignore[call-overload]


def _painting(module: Callable[..., Tensor], network: StyledNetwork, device: str) -> Paint:
    where = "cuda" if device == "GPU" else "cpu"
    first = _first_style(network, device)

    def paint(pixels: Pixels) -> Pixels:
        with torch.inference_mode():
            painted: Pixels = module(torch.from_numpy(pixels[None]).to(where), first)[0].cpu().numpy()
            return painted

    return paint


def _first_style(network: StyledNetwork, device: str) -> Tensor | None:
    """`style_weights` `[1, S]` of a network of several styles."""
    if network.styles == 1:
        return None
    return torch.eye(network.styles, device="cuda" if device == "GPU" else "cpu")[:1]


def _by_cuda_sessions(file: Path | None, exported: Exported) -> Paint:
    if file is None:
        raise MissingEngine(f"{exported.version} keeps no FP32 graph")
    return by_cuda_sessions(file, exported)


def by_onnx_runtime(file: Path | None, provider: str) -> Paint:
    """A session of `file` on `provider` alone, with all cores."""
    if file is None:
        raise MissingEngine("there is no ONNX file of this model")
    onnxruntime = import_onnxruntime("bench")
    if provider not in onnxruntime.get_available_providers():
        here = ", ".join(onnxruntime.get_available_providers())
        raise MissingEngine(f"ONNX Runtime {onnxruntime.__version__} here has no {provider} (it has {here})")
    session = _session(file, provider, os.cpu_count() or 1)
    if session.get_providers()[0] != provider:
        raise MissingEngine(f"ONNX Runtime could not start {provider}: is its device here?")
    return _running(session)


def _session(file: Path, provider: str, threads: int, settings: dict[str, str] | None = None) -> Any:
    """ONNX Runtime's session of `file` on `provider`, with so many threads."""
    onnxruntime = import_onnxruntime("bench")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if provider == "OpenVINOExecutionProvider":
        settings = {"device_type": "CPU", "num_of_threads": str(threads)}
    return onnxruntime.InferenceSession(str(file), options, providers=[(provider, settings or {})])


def _running(session: Any) -> Paint:
    """A picture through `session`, in the first style of a model that has several."""
    shapes = {tensor.name: tensor.shape for tensor in session.get_inputs()}
    several = STYLE_WEIGHTS in shapes
    weights = {STYLE_WEIGHTS: np.eye(1, shapes[STYLE_WEIGHTS][1], dtype=np.float32)} if several else {}

    def paint(pixels: Pixels) -> Pixels:
        painted: Pixels = session.run([STYLIZED], {IMAGE: pixels[None], **weights})[0][0]
        return painted

    return paint


class Bare:
    """What serves a model, without a server: its config's engine, and as many at once as the server has.

    On a CPU that is ONNX Runtime with the config's provider, threads and instances; on a GPU TensorRT or ONNX Runtime
    CUDA as the server's backends run them, images in main memory. Raises `InputError` for a config of another
    kind, `MissingEngine` for an engine that is not here.
    """

    def __init__(self, folder: Path) -> None:
        exported = Exported(folder)
        self.threads: int | None = None
        if exported.device == "GPU":
            self.provider, self.sessions = _on_gpu(exported)
            return
        config = exported.config
        if config.backend != "onnxruntime" or not config.instance_group:
            raise InputError(f"{folder.name} is served by {config.backend}: nothing here to compare it with")
        accelerators = [one.name for one in config.optimization.execution_accelerators.cpu_execution_accelerator]
        self.provider = "OpenVINOExecutionProvider" if "openvino" in accelerators else "CPUExecutionProvider"
        self.threads = int(exported.parameter("intra_op_thread_count") or os.cpu_count() or 1)
        self.sessions = [
            _opened(exported.version / "model.onnx", self.provider, self.threads) for _ in range(exported.instances)
        ]

    def paint(self, pixels: Pixels) -> Pixels:
        """`uint8 [H, W, 3]` through the first session."""
        return self.sessions[0](pixels)

    def together(self, pixels: Pixels, requests: int) -> float:
        """Seconds that all sessions at once take for `requests` pictures, one after the other in each."""

        def share(position: int) -> None:
            for _ in range(position, requests, len(self.sessions)):
                self.sessions[position](pixels)

        with ThreadPoolExecutor(len(self.sessions)) as pool:
            return timed(lambda: list(pool.map(share, range(len(self.sessions)))))


def _on_gpu(exported: Exported) -> tuple[str, list[Paint]]:
    """The name of a GPU model's engine, and what paints side by side there."""
    config = exported.config
    if config.backend == "tensorrt":
        return "TensorRT", CONTEXTS * [by_tensorrt(exported)]
    if config.backend != "onnxruntime":
        raise InputError(f"{exported.folder.name} is served by {config.backend}: nothing here to compare it with")
    for accelerator in config.optimization.execution_accelerators.gpu_execution_accelerator:
        if accelerator.name == "tensorrt":
            settings = {key: value for key, value in accelerator.parameters.items() if key.startswith("trt_")}
            settings["trt_fp16_enable"] = str(accelerator.parameters["precision_mode"] == "FP16")
            provider = "TensorrtExecutionProvider"
            return provider, [_opened(exported.version / "model.onnx", provider, 1, settings)]
    return "CUDAExecutionProvider", [by_cuda_sessions(exported.version / "model.onnx", exported)]


def _opened(file: Path, provider: str, threads: int, settings: dict[str, str] | None = None) -> Paint:
    session = _session(file, provider, threads, settings)
    if session.get_providers()[0] != provider:
        extra = "gpu" if provider.startswith("Tensorrt") else "bench"
        raise InputError(f"ONNX Runtime has no {provider} here: {install_command(extra)}")
    return _running(session)


def photograph(height: int, width: int) -> Pixels:
    """A real one, cut to these sides (pixels), `uint8 [H, W, 3]`."""
    return fitted(open_image(sample_photographs()[-1]), width, height).pixels
