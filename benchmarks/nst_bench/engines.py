"""What paints: PyTorch and ONNX Runtime in this process, and a Triton with one model."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from nst_bench.measure import timed
from nst_client import StyleClient
from nst_core.errors import InputError, NstError
from nst_core.images import Pixels, fitted, open_picture, sample_photographs
from nst_export import exporter
from nst_export.served import INPUT, STYLE_WEIGHTS, ServedModel
from nst_server import triton
from nst_trainer.checkpoint import Checkpoint, frozen, save
from nst_trainer.networks import Johnson, StyledNetwork

STYLIZED = "stylized"

Paint = Callable[[Pixels], Pixels]
"""`uint8 [H, W, 3]` to the same; both in main memory, so that a GPU's copies count, and its work is done."""


class MissingEngine(NstError):
    """An engine that cannot paint here; the message is the reason."""


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
    def folder(self) -> Path:
        """The model's."""
        return self.repository / self.model

    @property
    def version(self) -> Path:
        """The folder of the newest version, which is the one that is served."""
        return max((path for path in self.folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))

    @property
    def config(self) -> model_config_pb2.ModelConfig:
        """As its `config.pbtxt` says."""
        return _config(self.folder)

    @property
    def device(self) -> str:
        """`CPU` or `GPU`, whatever its instances run on."""
        return device_of(self.folder)

    @property
    def style(self) -> str:
        """The first of the model's styles."""
        with StyleClient(self.endpoints.grpc) as client:
            return next(style.name for style in client.styles() if style.model == self.model)


@contextmanager
def served(installation: triton.Installation, repository: Path, model: str) -> Iterator[Served]:
    """Triton on free ports of this machine with a copy of `model` alone, ready; ended with the block.

    Raises `InputError` when the repository lacks the model.
    """
    check_exported(repository, model)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "models"
        shutil.copytree(repository / model, copy / model)
        endpoints = triton.Endpoints.free()
        started = time.perf_counter()
        with triton.running(installation, copy, endpoints, Path(scratch) / "triton.log") as process:
            yield Served(model, copy, endpoints, process, time.perf_counter() - started)


def check_exported(repository: Path, model: str) -> None:
    """Raise `InputError` when the repository lacks the model."""
    if not (repository / model / "config.pbtxt").is_file():
        raise InputError(
            f"{repository} has no model {model!r}; export it first: nst-export {model}.pth -r {repository}"
        )


def device_of(model: Path) -> str:
    """`CPU` or `GPU`, whatever the instances of the exported model in this folder run on."""
    kinds = {group.kind for group in _config(model).instance_group}
    return "CPU" if kinds <= {model_config_pb2.ModelInstanceGroup.KIND_CPU} else "GPU"


def _config(model: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def check_source(repository: Path, model: str, checkpoint: Path) -> None:
    """Raise `InputError` if `model` was not exported from the file `checkpoint`; nothing if nobody noted that."""
    note = max(repository.glob(f"{model}/*/verification.json"), key=lambda path: int(path.parent.name), default=None)
    if not note or not checkpoint.is_file():
        return
    made_of = json.loads(note.read_text())["checkpoint"]["sha256"]
    if made_of != hashlib.sha256(checkpoint.read_bytes()).hexdigest():
        raise InputError(
            f"{note.parent} was not exported from {checkpoint}: nst-export {checkpoint} -r {repository} brings it up"
        )


def untrained(width: float) -> Checkpoint:
    """Johnson's network of `width` with random weights: no engine looks at them, so it takes a trained one's time."""
    torch.manual_seed(0)
    return Checkpoint(frozen(Johnson(width=width)), (f"untrained-{width:g}",))


def publish(checkpoint: Checkpoint, folder: Path, *, say: Callable[[str], None] = lambda line: None) -> str:
    """Export a checkpoint for this machine's processor into the repository `folder`; the model's name."""
    name = checkpoint.styles[0]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"{name}.pth"
        save(checkpoint, file)
        exporter.export(file, name, folder, exporter.Plan(cores=os.cpu_count() or 1), say=say)
    return name


def in_process(network: StyledNetwork, file: Path | None) -> list[Engine]:
    """Every engine that could run in this process: PyTorch with `network`, ONNX Runtime with `file`, its export."""
    pytorch = [
        Engine(name, device, partial(load, network, device), compiles=load is by_compiled)
        for device in ("CPU", "GPU")
        for name, load in (("PyTorch eager", by_pytorch), ("PyTorch compiled", by_compiled))
    ]
    providers = {
        "ONNX Runtime": ("CPU", "CPUExecutionProvider"),
        "ONNX Runtime, OpenVINO": ("CPU", "OpenVINOExecutionProvider"),
        "ONNX Runtime, CUDA": ("GPU", "CUDAExecutionProvider"),
        "ONNX Runtime, TensorRT": ("GPU", "TensorrtExecutionProvider"),
    }
    runtime = [
        Engine(name, device, partial(by_onnx_runtime, file, provider)) for name, (device, provider) in providers.items()
    ]
    return [*pytorch, *runtime]


def by_pytorch(network: StyledNetwork, device: str) -> Paint:
    """The network as it is trained, channels last, with the picture's arithmetic around it."""
    return _painting(_module(network, device), network, device)


def by_compiled(network: StyledNetwork, device: str) -> Paint:
    """The same through `torch.compile`, each shape by itself: its symbolic shapes do not take this padding."""
    from torch._dynamo.exc import TorchDynamoException  # takes a second, which only this needs

    module = _module(network, device)
    if device == "CPU" and not shutil.which(os.environ.get("CXX", "g++")):
        raise MissingEngine("torch.compile needs a C++ compiler (g++, or what CXX names), and none is here")
    paint = _painting(torch.compile(module, dynamic=False), network, device)

    def compiling(pixels: Pixels) -> Pixels:
        try:
            return paint(pixels)
        except TorchDynamoException as error:
            raise MissingEngine(f"torch.compile failed: {str(error).splitlines()[0]}") from error

    return compiling


def _module(network: StyledNetwork, device: str) -> ServedModel:
    if device == "GPU" and not torch.cuda.is_available():
        raise MissingEngine(f"no CUDA device that torch {torch.__version__} can use")
    placed = copy.deepcopy(network).to("cuda" if device == "GPU" else "cpu")
    return ServedModel(placed.to(memory_format=torch.channels_last)).eval()  # type: ignore[call-overload]


def _painting(module: Callable[..., torch.Tensor], network: StyledNetwork, device: str) -> Paint:
    where = "cuda" if device == "GPU" else "cpu"
    first = None if network.styles == 1 else torch.eye(network.styles, device=where)[:1]

    def paint(pixels: Pixels) -> Pixels:
        with torch.inference_mode():
            painted: Pixels = module(torch.from_numpy(pixels[None]).to(where), first)[0].cpu().numpy()
            return painted

    return paint


def by_onnx_runtime(file: Path | None, provider: str) -> Paint:
    """A session of `file` on `provider` alone, with all cores."""
    if file is None:
        raise MissingEngine("there is no ONNX file of this model")
    if provider not in onnxruntime.get_available_providers():
        here = ", ".join(onnxruntime.get_available_providers())
        raise MissingEngine(f"ONNX Runtime {onnxruntime.__version__} here has no {provider} (it has {here})")
    session = _session(file, provider, os.cpu_count() or 1)
    if session.get_providers()[0] != provider:
        raise MissingEngine(f"ONNX Runtime could not start {provider}: is its device here?")
    return _running(session)


def _session(file: Path, provider: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    openvino = {"device_type": "CPU", "num_of_threads": str(threads)}
    settings = openvino if provider == "OpenVINOExecutionProvider" else {}
    return onnxruntime.InferenceSession(str(file), options, providers=[(provider, settings)])


def _running(session: onnxruntime.InferenceSession) -> Paint:
    """A picture through `session`, in the first style of a model that has several."""
    shapes = {tensor.name: tensor.shape for tensor in session.get_inputs()}
    several = STYLE_WEIGHTS in shapes
    weights = {STYLE_WEIGHTS: np.eye(1, shapes[STYLE_WEIGHTS][1], dtype=np.float32)} if several else {}

    def paint(pixels: Pixels) -> Pixels:
        painted: Pixels = session.run([STYLIZED], {INPUT: pixels[None], **weights})[0][0]
        return painted

    return paint


class Bare:
    """The sessions of a model without a server: its config's provider, threads and number of instances.

    Raises `InputError` for a config that is not served by ONNX Runtime on a CPU, or whose provider is not here.
    """

    def __init__(self, folder: Path) -> None:
        config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        kinds = {group.kind for group in config.instance_group}
        if config.backend != "onnxruntime" or kinds != {model_config_pb2.ModelInstanceGroup.KIND_CPU}:
            raise InputError(f"{folder.name} is not served by ONNX Runtime on a CPU: nothing here to compare it with")
        version = max((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
        accelerators = [one.name for one in config.optimization.execution_accelerators.cpu_execution_accelerator]
        self.provider = "OpenVINOExecutionProvider" if "openvino" in accelerators else "CPUExecutionProvider"
        self.threads = int(config.parameters["intra_op_thread_count"].string_value or os.cpu_count() or 1)
        instances = sum(group.count for group in config.instance_group)
        self.sessions = [self._open(version / "model.onnx") for _ in range(instances)]

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

    def _open(self, file: Path) -> Paint:
        session = _session(file, self.provider, self.threads)
        if session.get_providers()[0] != self.provider:
            raise InputError(f"ONNX Runtime has no {self.provider} here: pip install 'nst[bench]'")
        return _running(session)


def photograph(height: int, width: int) -> Pixels:
    """A real one, cut to these sides (pixels), `uint8 [H, W, 3]`."""
    return fitted(open_picture(sample_photographs()[-1]), width, height).pixels
