"""What else could paint or serve here, in one run and in turns with nst, so that a drift of the machine hits all.

Peers are installed in an environment of their own, since two packages that both contain the module `onnxruntime` must
not share one; there they run as processes (`nst_bench/peers/worker`). Those in a process are timed by that
process's own clock, from a picture in memory to a picture in memory; those behind HTTP by ours, from the request to
the last byte of the answer, one request at a time over a connection that is open. Behind HTTP each runs OpenVINO in
FP32 on the very file that Triton serves: what differs is the server. A peer that is not there is a row with the reason.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from nst_bench.engines.bare import BareModel
from nst_bench.engines.base import MissingEngine, Stylize
from nst_bench.machine.description import document_header
from nst_bench.measure import REST, summarize, timed
from nst_bench.peers.process import installed_packages, start_peer
from nst_bench.photographs import sample_photograph
from nst_bench.served.server import ModelServer
from nst_bench.suites.latency import NARROWER, about, ways
from nst_core.devices import Device
from nst_core.errors import InputError
from nst_core.images import Pixels
from nst_trainer.checkpoint import Checkpoint

SCHEMA = "nst-bench-peers/1"

PROCESS, HTTP = "in a process", "HTTP"
SAME = "the same file"


@dataclass(frozen=True)
class Peer:
    """A peer: the name of its package, what it runs and on what engine; `key` is the worker's name for it."""

    name: str
    package: str
    way: str
    engine: str
    runs: str = SAME
    key: str = ""


PEERS = (
    Peer("OpenVINO", "openvino", PROCESS, "OpenVINO"),
    Peer("OpenVINO as it comes", "openvino", PROCESS, "OpenVINO, bfloat16", key="openvino-bf16"),
    Peer("MNN", "MNN", PROCESS, "MNN", "the same file, converted"),
    Peer("ONNX Runtime from PyPI", "onnxruntime", PROCESS, "ONNX Runtime"),
    Peer("styletransfer-lite", "styletransfer-lite", PROCESS, "ONNX Runtime", "a network of its authors, 26 styles"),
    Peer("FastAPI", "fastapi", HTTP, "OpenVINO"),
    Peer("LitServe", "litserve", HTTP, "OpenVINO"),
    Peer("BentoML", "bentoml", HTTP, "OpenVINO"),
)
OURS = {PROCESS: "nst, the bare session", HTTP: "nst, Triton"}


@dataclass(frozen=True)
class Effort:
    """Sides of the pictures in pixels, and how many each peer paints of each."""

    sizes: tuple[int, ...]
    rounds: int


SHORT = Effort((256, 512), 12)
FULL = Effort((256, 512, 1024), 40)


@dataclass(frozen=True)
class _Running:
    """A peer at work: `seconds` says how long it takes for an image, `stylize` returns the result."""

    peer: Peer
    version: str
    seconds: Callable[[Pixels], float]
    stylize: Stylize


def measure(
    checkpoint: Checkpoint,
    served: ModelServer,
    environment: Path,
    *,
    effort: Effort = FULL,
    on_progress: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """The peers of the virtual environment `environment`, and nst with `served`; a document.

    Rows of the steady state also have `levels`, the largest difference from nst's picture, of 255, for those that run
    the same network. Raises `InputError` if there is no Python in `environment`.
    """
    python = check(environment)
    versions = installed_packages(python)
    document = document_header(SCHEMA)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        running = _ours(stack, served)
        for peer in PEERS:
            try:
                running.append(stack.enter_context(_started(peer, python, served, versions)))
                on_progress(f"{peer.name} {running[-1].version}: started")
            except MissingEngine as error:
                said = _about(peer, versions.get(peer.package))
                rows += [{**said, "size": size, "phase": "steady", "missing": str(error)} for size in effort.sizes]
                on_progress(f"{peer.name}: {error}")
        for size in effort.sizes:
            rows += _at_size(running, size, effort.rounds)
            steady = [row for row in rows if row["size"] == size and "ratio" in row]
            on_progress(f"{size} x {size}: " + ", ".join(f"{row['peer']} {row['median']:.1f} ms" for row in steady))
    command = f"{_installation(environment)} && nst-bench peers --environment {shlex.quote(str(environment))}"
    return {
        **document,
        "model": about(checkpoint, served.model),
        "environment": {"python": str(python), "packages": versions},
        "command": command,
        "rows": rows,
    }


def check(environment: Path, device: Device | None = None) -> Path:
    """The Python of `environment`; `InputError` if there is none, or peers, which run on a CPU, have another device."""
    if device and device.gpu:
        raise InputError("the peers run on the CPU: give --device cpu, with a model that was exported for it")
    python = environment / "bin" / "python"
    if not python.is_file():
        raise InputError(f"{environment}: no virtual environment; {_installation(environment)} makes one")
    return python


def _installation(environment: Path) -> str:
    packages = " ".join(dict.fromkeys((*(peer.package for peer in PEERS), "uvicorn")))
    where = shlex.quote(str(environment))
    return f"python -m venv {where} && {where}/bin/pip install {packages}"


def _about(peer: Peer, version: str | None) -> dict[str, Any]:
    return {
        "peer": peer.name,
        "package": peer.package,
        "version": version,
        "way": peer.way,
        "runs": peer.runs,
        "engine": peer.engine,
    }


def _ours(stack: ExitStack, served: ModelServer) -> list[_Running]:
    """The bare session, and the served model over HTTP and gRPC."""
    bare = BareModel(served.exported.folder)
    engine = "OpenVINO" if bare.provider == "OpenVINOExecutionProvider" else "ONNX Runtime"
    protocols = ways(stack, served, served.style)
    paints = {
        PROCESS: bare.stylize,
        HTTP: protocols["served, HTTP"],
        "gRPC": protocols["served, gRPC"],
    }
    return [
        _Running(
            Peer(OURS.get(way, OURS[HTTP]), "nst", way, engine),
            version("nst"),
            lambda pixels, paint=paint: timed(partial(paint, pixels)),  # type: ignore[misc]
            paint,
        )
        for way, paint in paints.items()
    ]


def _at_size(running: list[_Running], size: int, rounds: int) -> list[dict[str, Any]]:
    """First pictures of new shapes, then `rounds` warm ones of each in turn."""
    picture = sample_photograph(size, size)
    ours = running[0].stylize(picture).astype(int)
    rows, levels = [], []
    for position, one in enumerate(running):
        shapes = [sample_photograph(size, size - narrower - position) for narrower in NARROWER]
        firsts = [one.seconds(shape) for shape in shapes]
        said = _about(one.peer, one.version)
        rows.append({**said, "size": size, "phase": "first of a shape", **asdict(summarize(firsts))})
        same = one.peer.runs.startswith(SAME)
        levels.append(int(np.abs(one.stylize(picture).astype(int) - ours).max()) if same else None)
        one.seconds(picture)
    taken: list[list[float]] = [[] for _ in running]
    for _ in range(rounds):
        for one, seconds in zip(running, taken, strict=True):
            time.sleep(REST)
            seconds.append(one.seconds(picture))
    summaries = [summarize(seconds) for seconds in taken]
    pairs = list(zip(running, summaries, strict=True))
    base = {one.peer.way: summary.median for one, summary in pairs if one.peer.package == "nst"}
    for (one, summary), level in zip(pairs, levels, strict=True):
        row = {**_about(one.peer, one.version), "size": size, "phase": "steady", **asdict(summary)}
        rows.append({**row, "levels": level, "ratio": summary.median / base[one.peer.way]})
    return rows


@contextmanager
def _started(peer: Peer, python: Path, served: ModelServer, versions: dict[str, str]) -> Iterator[_Running]:
    """A peer at work on the served model's file; ended with the block. Raises `MissingEngine`."""
    installed = versions.get(peer.package)
    if installed is None:
        raise MissingEngine(f"not installed: {python.with_name('pip')} install {peer.package}")
    file = served.exported.model_file
    if not file.is_file():
        raise MissingEngine(f"{served.model} is served as an engine: there is no ONNX file to give it")
    with start_peer(python, peer.key or peer.package, file, over_http=peer.way == HTTP) as process:
        yield _Running(peer, installed, process.seconds, process.stylize)
