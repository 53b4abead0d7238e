"""Servers of the benchmarks: Triton with one model, and nst commands that serve."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nst_bench.measure import TIMEOUT_SECONDS
from nst_bench.served.exported import ExportedModel
from nst_client import StyleClient
from nst_core.errors import NstError
from nst_core.images import Pixels
from nst_server.endpoints import Endpoints
from nst_server.installation.triton import Installation
from nst_server.process.supervisor import run_triton


class NotReadyError(NstError):
    """A command ended before it was ready."""


@dataclass(frozen=True)
class ModelServer:
    """A running Triton with one model, and the seconds from its start to ready."""

    model: str
    repository: Path
    endpoints: Endpoints
    process: subprocess.Popen[str]
    seconds: float

    @property
    def exported(self) -> ExportedModel:
        """The model's files."""
        return ExportedModel(self.repository / self.model)

    @property
    def style(self) -> str:
        """The client's name for the model's first style."""
        styles = self.exported.styles
        return styles[0] if len(styles) > 1 else self.model

    def ways(self, stack: ExitStack) -> dict[str, Callable[[Pixels], Pixels]]:
        """Return functions that stylize over every protocol, and by `local` without the server; `stack` closes them."""
        ends = self.endpoints
        clients = {
            "local": StyleClient(f"local:{self.repository}", timeout=TIMEOUT_SECONDS),
            "HTTP": StyleClient(ends.http, timeout=TIMEOUT_SECONDS, shared_memory=False),
            "gRPC": StyleClient(ends.grpc, timeout=TIMEOUT_SECONDS, shared_memory=False),
            "shared memory": StyleClient(ends.grpc, timeout=TIMEOUT_SECONDS, shared_memory=True),
        }
        return {way: partial(stack.enter_context(client).stylize, style=self.style) for way, client in clients.items()}


@contextmanager
def serve_model(installation: Installation, repository: Path, model: str) -> Iterator[ModelServer]:
    """Serve a copy of `model` on free ports of this machine; the server ends with the block.

    Raises `InputError` if the repository has no such model.
    """
    exported = ExportedModel(repository / model)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "models"
        shutil.copytree(exported.folder, copy / model)
        endpoints = Endpoints.free()
        started = time.perf_counter()
        with run_triton(installation, copy, endpoints, Path(scratch) / "triton.log") as process:
            yield ModelServer(model, copy, endpoints, process, time.perf_counter() - started)


@contextmanager
def ready_command(name: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a command of nst until the block ends; yield its process and what it prints after `ready:`.

    Raises `NotReadyError` with its last line if it ends earlier.
    """
    command = [str(Path(sys.executable).with_name(name)), *options]
    environment = {**os.environ, "COLUMNS": "500"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        try:
            message = "no output"
            for line in process.stderr:
                if line.startswith("ready:"):
                    yield process, line.removeprefix("ready:").strip()
                    return
                message = line.strip() or message
            raise NotReadyError(f"{name} ended before it was ready: {message}")
        finally:
            process.terminate()  # a shell's background jobs ignore Ctrl-C
            process.communicate(timeout=60.0)
