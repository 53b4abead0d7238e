"""Cold starts: from the start of the server's process to the first request of each shape.

The real `nst serve` is started and stopped repeatedly. Files are in the system's cache after the first time, as on a
machine that serves; the first start after a boot takes longer because of the disk.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from nst_bench import options
from nst_bench.drawing.tables import list_of_rows
from nst_bench.engines.baseline import Baseline
from nst_bench.measure import summarize, timed
from nst_bench.photographs import sample_photograph
from nst_bench.served.exported import ExportedModel
from nst_bench.served.server import ModelServer, ready_command
from nst_bench.suite import Context, Cost, Document, Effort, Suite
from nst_client import StyleClient
from nst_core.devices import Device
from nst_server import state
from nst_server.control import Control
from nst_server.endpoints import Endpoints

START = "nst-serve, from its start to ready"
LOAD = "the server loads the model and warms it up"
SESSION = "a session in the process, without a server"
FIRST = "first request of a new client"
SHAPE = "first image of a shape"
STEADY = "the same shape again"
WHAT = (START, LOAD, SESSION, FIRST, SHAPE, STEADY)


@dataclass(frozen=True)
class ColdEffort(Effort):
    """Starts, warm images per shape after each, and the shapes, (height, width) in pixels."""

    starts: int
    again: int
    shapes: tuple[tuple[int, int], ...] = ((256, 256), (512, 512), (333, 501), (480, 270))

    takes_time = ("starts",)


Seconds = dict[tuple[str, int | None, int | None], list[float]]
"""Seconds by what is timed, and the image's height and width, or None."""


def measure(
    context: Context[ColdEffort],
    *,
    model: options.Model = options.MODEL,
    repository: options.Repository = options.REPOSITORY,
    triton: options.Triton = options.TRITON,
) -> Document:
    """Measure cold starts: server, model, client, new shapes.

    Measures nst serve from its start to ready, the loading of the model, a client's first request, and the first
    request of each shape. Takes about half a minute, with --full two minutes.
    """
    ExportedModel(repository / model).check_device(context.device)
    effort = context.effort
    seconds: Seconds = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "models"
        shutil.copytree(repository / model, copy / model)
        if context.device.gpu:
            Baseline(copy / model)  # puts the TensorRT plan into the cache
        for number in range(effort.starts):
            with _nst_serve(triton, copy, model, context.device) as (server, control):
                seconds[START, None, None].append(server.seconds)
                _stylize(server, effort, seconds)
                control.unload(model)
                seconds[LOAD, None, None].append(timed(partial(control.load, model)))
            seconds[SESSION, None, None].append(timed(partial(Baseline, copy / model)))
            context.on_progress(f"start {number + 1} of {effort.starts}: ready after {server.seconds:.1f} s")
        warm = _warmed_up(server)
    rows = [
        {
            **{"what": what, "height": height, "width": width},
            "warmed_up": None if height is None else (height, width) in warm,
            **asdict(summarize(taken)),
        }
        for (what, height, width), taken in sorted(seconds.items(), key=lambda item: WHAT.index(item[0][0]))
    ]
    return {"model": {"name": model}, "rows": rows}


def _stylize(server: ModelServer, effort: ColdEffort, seconds: Seconds) -> None:
    """Measure a new client's first request, then the first and later requests of each shape."""
    with StyleClient(server.endpoints.grpc, timeout=300.0, shared_memory=False) as client:

        def first() -> None:
            style = next(known.name for known in client.styles() if known.model == server.model)
            client.stylize(sample_photograph(*effort.shapes[0]), style)

        seconds[FIRST, *effort.shapes[0]].append(timed(first))
        for height, width in effort.shapes:
            again = partial(client.stylize, sample_photograph(height, width), server.style)
            if (height, width) != effort.shapes[0]:
                seconds[SHAPE, height, width].append(timed(again))
            seconds[STEADY, height, width] += [timed(again) for _ in range(effort.again)]


def _warmed_up(server: ModelServer) -> set[tuple[int, int]]:
    """Return the shapes of the model's warm-up."""
    warmups = server.exported.config.model_warmup
    shapes = [tuple(content.dims) for warmup in warmups for content in warmup.inputs.values()]
    return {(shape[0], shape[1]) for shape in shapes if len(shape) == 3}


@contextmanager
def _nst_serve(
    environment: Path, repository: Path, model: str, device: Device
) -> Iterator[tuple[ModelServer, Control]]:
    """Yield a ready `nst serve` in its own process, and its control; it ends with the block."""
    endpoints = Endpoints.free()
    with tempfile.TemporaryDirectory() as scratch:
        given = {
            "--repository": repository,
            "--triton": environment,
            "--device": device.kind,
            "--log": f"{scratch}/triton.log",
            "--state": f"{scratch}/state",
            "--http-port": endpoints.http_port,
            "--grpc-port": endpoints.grpc_port,
            "--metrics-port": endpoints.metrics_port,
        }
        arguments = [str(part) for option in given.items() for part in option]
        started = time.perf_counter()
        with ready_command("nst-serve", *arguments) as (process, _):
            seconds = time.perf_counter() - started
            kept = state.read(Path(scratch) / "state", endpoints.http_port)
            control = Control(endpoints.control, kept.key if kept else None)
            yield ModelServer(model, repository, endpoints, process, seconds), control


SHORT, FULL = ColdEffort(2, 5), ColdEffort(6, 9)

SUITE = Suite(
    name="cold",
    title="Cold starts",
    measure=measure,
    tables=list_of_rows,
    effort=SHORT,
    on_cpu={"default": Cost(40, SHORT), "full": Cost(70, FULL)},
    on_gpu={"default": Cost(45, SHORT), "full": Cost(110, FULL)},
    rank=60,
)
