"""What is slow once: from the start of the server's process to its first pictures, each by itself.

The real `nst-serve` is started and ended again and again. Files are in the system's cache after the first time, as
they are on a machine that serves; the first start after a boot takes longer by what its disk takes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nst_bench.engines.bare import BareModel
from nst_bench.machine.description import document_header
from nst_bench.measure import summarize, timed
from nst_bench.photographs import sample_photograph
from nst_bench.served.server import ModelServer
from nst_client import StyleClient
from nst_core.devices import Device
from nst_core.errors import NstError
from nst_server import state
from nst_server.control import Control
from nst_server.endpoints import Endpoints

SCHEMA = "nst-bench-cold/1"

START = "nst-serve, from its start to ready"
LOAD = "the server loads the model and warms it up"
SESSION = "a session in the process, without a server"
FIRST = "first request of a new client"
SHAPE = "first picture of a shape"
STEADY = "the same shape again"
WHAT = (START, LOAD, SESSION, FIRST, SHAPE, STEADY)


@dataclass(frozen=True)
class Effort:
    """Starts, pictures of a shape in the steady state after each, and the shapes, (height, width) in pixels."""

    starts: int
    again: int
    shapes: tuple[tuple[int, int], ...] = ((256, 256), (512, 512), (333, 501), (480, 270))

    def scaled(self, share: float) -> Effort:
        """For a share of the time."""
        return replace(self, starts=max(1, int(share * self.starts)))


SHORT = Effort(2, 5)
FULL = Effort(6, 9)


class ColdError(NstError):
    """nst-serve did not become ready."""


def measure(
    environment: Path,
    repository: Path,
    model: str,
    device: Device,
    *,
    effort: Effort = FULL,
    on_progress: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """Start `nst-serve` on a copy of `model` alone, with the Triton of the folder `environment`; a document.

    The model is unloaded and loaded again after each start. On a GPU the plan is in the cache when the first start is
    timed. Raises `ColdError`.
    """
    document = document_header(SCHEMA)
    seconds: dict[tuple[str, int | None, int | None], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "models"
        shutil.copytree(repository / model, copy / model)
        if device.gpu:
            BareModel(copy / model)
        for number in range(effort.starts):
            with _nst_serve(environment, copy, model, device) as (server, control):
                seconds[START, None, None].append(server.seconds)
                _pictures(server, effort, seconds)
                control.unload(model)
                seconds[LOAD, None, None].append(timed(partial(control.load, model)))
            seconds[SESSION, None, None].append(timed(partial(BareModel, copy / model)))
            on_progress(f"start {number + 1} of {effort.starts}: ready after {server.seconds:.1f} s")
        warm = _warmed_up(server)
    rows = [
        {
            **{"what": what, "height": height, "width": width},
            "warmed_up": None if height is None else (height, width) in warm,
            **asdict(summarize(taken)),
        }
        for (what, height, width), taken in sorted(seconds.items(), key=lambda item: WHAT.index(item[0][0]))
    ]
    return {**document, "model": {"name": model}, "rows": rows}


def _pictures(
    server: ModelServer, effort: Effort, seconds: dict[tuple[str, int | None, int | None], list[float]]
) -> None:
    """A new client's first request, then each shape for the first time and again."""
    with StyleClient(server.endpoints.grpc, timeout=300.0, shared_memory=False) as client:

        def first() -> None:
            style = next(one.name for one in client.styles() if one.model == server.model)
            client.stylize(sample_photograph(*effort.shapes[0]), style)

        seconds[FIRST, *effort.shapes[0]].append(timed(first))
        style = server.style
        for height, width in effort.shapes:
            again = partial(client.stylize, sample_photograph(height, width), style)
            if (height, width) != effort.shapes[0]:
                seconds[SHAPE, height, width].append(timed(again))
            seconds[STEADY, height, width] += [timed(again) for _ in range(effort.again)]


def _warmed_up(server: ModelServer) -> set[tuple[int, int]]:
    """Shapes that the model's config has the server paint before it is ready."""
    dims = [tuple(one.dims) for warm in server.exported.config.model_warmup for one in warm.inputs.values()]
    return {(one[0], one[1]) for one in dims if len(one) == 3}


@contextmanager
def _nst_serve(
    environment: Path, repository: Path, model: str, device: Device
) -> Iterator[tuple[ModelServer, Control]]:
    """The command in a process of its own, ready, and how to steer it; ended with the block."""
    endpoints = Endpoints.free()
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            *(str(Path(sys.executable).with_name("nst-serve")), "--repository", str(repository)),
            *("--triton", str(environment), "--log", f"{scratch}/triton.log", "--state", f"{scratch}/state"),
            *("--http-port", str(endpoints.http_port), "--grpc-port", str(endpoints.grpc_port)),
            *("--metrics-port", str(endpoints.metrics_port), "--device", device.kind),
        ]
        started = time.perf_counter()
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "500"}
        ) as process:
            try:
                _wait_until_ready(process)
                seconds = time.perf_counter() - started
                kept = state.read(Path(scratch) / "state", endpoints.http_port)
                control = Control(endpoints.control, kept.key if kept else None)
                yield ModelServer(model, repository, endpoints, process, seconds), control
            finally:
                process.terminate()  # not Ctrl-C, to which what a shell started in the background is deaf
                process.communicate(timeout=60.0)


def _wait_until_ready(process: subprocess.Popen[str]) -> None:
    """Read what it says up to `ready:`; raises `ColdError` with its last line if it ends before."""
    assert process.stderr is not None
    said = "nothing"
    for line in process.stderr:
        if line.startswith("ready:"):
            return
        said = line.strip() or said
    raise ColdError(f"nst-serve ended without being ready: {said}")
