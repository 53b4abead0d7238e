"""What paints in the suites of serving: a Triton with one model, and that model's sessions in this process."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from nst_bench.measure import timed
from nst_client import StyleClient
from nst_core.errors import InputError
from nst_core.images import Pixels, fitted, open_picture, sample_photographs
from nst_export import exporter
from nst_export.served import INPUT, STYLE_WEIGHTS
from nst_server import triton
from nst_trainer.checkpoint import Checkpoint, frozen, save
from nst_trainer.networks import Johnson

STYLIZED = "stylized"


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
    def style(self) -> str:
        """The first of the model's styles."""
        with StyleClient(self.endpoints.grpc) as client:
            return next(style.name for style in client.styles() if style.model == self.model)


@contextmanager
def served(installation: triton.Installation, repository: Path, model: str) -> Iterator[Served]:
    """Triton on free ports of this machine with a copy of `model` alone, ready; ended with the block.

    Raises `InputError` when the repository lacks the model.
    """
    if not (repository / model / "config.pbtxt").is_file():
        raise InputError(
            f"{repository} has no model {model!r}; export it first: nst-export {model}.pth -r {repository}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "models"
        shutil.copytree(repository / model, copy / model)
        endpoints = triton.Endpoints.free()
        started = time.perf_counter()
        with triton.running(installation, copy, endpoints, Path(scratch) / "triton.log") as process:
            yield Served(model, copy, endpoints, process, time.perf_counter() - started)


def export_untrained(width: float, folder: Path, *, say: Callable[[str], None]) -> str:
    """Export Johnson's network of `width` with random weights into the repository `folder`; the model's name.

    No engine looks at the weights, so it takes the time of a trained one.
    """
    torch.manual_seed(0)
    name = f"untrained-{width:g}"
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"{name}.pth"
        save(Checkpoint(frozen(Johnson(width=width)), (name,)), file)
        exporter.export(file, name, folder, exporter.Plan(cores=os.cpu_count() or 1), say=say)
    return name


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
        self._weights = self._first_style()

    def paint(self, pixels: Pixels) -> Pixels:
        """`uint8 [H, W, 3]` through the first session."""
        return self._run(self.sessions[0], pixels)

    def together(self, pixels: Pixels, requests: int) -> float:
        """Seconds that all sessions at once take for `requests` pictures, one after the other in each."""

        def share(position: int) -> None:
            for _ in range(position, requests, len(self.sessions)):
                self._run(self.sessions[position], pixels)

        with ThreadPoolExecutor(len(self.sessions)) as pool:
            return timed(lambda: list(pool.map(share, range(len(self.sessions)))))

    def _run(self, session: onnxruntime.InferenceSession, pixels: Pixels) -> Pixels:
        painted: Pixels = session.run([STYLIZED], {INPUT: pixels[None], **self._weights})[0][0]
        return painted

    def _open(self, file: Path) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads
        openvino = {"device_type": "CPU", "num_of_threads": str(self.threads)}
        settings = openvino if self.provider == "OpenVINOExecutionProvider" else {}
        session = onnxruntime.InferenceSession(str(file), options, providers=[(self.provider, settings)])
        if session.get_providers()[0] != self.provider:
            raise InputError(f"ONNX Runtime has no {self.provider} here: pip install 'nst[bench]'")
        return session

    def _first_style(self) -> dict[str, Any]:
        """The input of weights for the first style, of a model that has several."""
        shapes = {tensor.name: tensor.shape for tensor in self.sessions[0].get_inputs()}
        return {STYLE_WEIGHTS: np.eye(1, shapes[STYLE_WEIGHTS][1], dtype=np.float32)} if STYLE_WEIGHTS in shapes else {}


def photograph(height: int, width: int) -> Pixels:
    """A real one, cut to these sides (pixels), `uint8 [H, W, 3]`."""
    return fitted(open_picture(sample_photographs()[-1]), width, height).pixels
