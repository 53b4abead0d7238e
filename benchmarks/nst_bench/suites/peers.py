"""Other runtimes and model servers, in turns with nst in one run, so that a drift of the machine affects all alike.

Peers need their own environment, since two packages that both contain the module `onnxruntime` cannot share one; they
run there as processes (`nst_bench/peers/worker`). Runtimes are timed within their process, from an image in memory to
an image in memory. Servers are timed from the request to the last byte of the answer, one request at a time over an
open HTTP connection; each runs OpenVINO in FP32 on the file that Triton serves, so only the server differs. A peer
that is not installed has a row with the reason.
"""

from __future__ import annotations

import operator
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from nst_bench.drawing.tables import list_of_rows
from nst_bench.drawing.words import shown
from nst_bench.engines.base import MissingEngine, Stylize
from nst_bench.engines.baseline import Baseline
from nst_bench.measure import REST_SECONDS, interleaved, summarize, timed
from nst_bench.peers.process import installed_packages, start_peer
from nst_bench.photographs import sample_photograph
from nst_bench.served.resources import describe_network, served_checkpoint
from nst_bench.served.server import ModelServer
from nst_bench.suite import Context, Cost, Document, Effort, Suite
from nst_bench.suites.latency import NARROWER
from nst_core.errors import InputError
from nst_core.images import Pixels
from nst_trainer.checkpoint import Checkpoint

ENVIRONMENT = Path(".peers")

PROCESS, HTTP = "in a process", "HTTP"
SAME = "the same file"


@dataclass(frozen=True)
class Peer:
    """A peer: its package, how it is called, its engine and what it runs; `key` is the worker's name for it."""

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
BENEATH = ("uvicorn", "onnxruntime-openvino", "numpy")
"""Packages that peers depend on, or that replace theirs."""

OURS = {PROCESS: "nst, the bare session", HTTP: "nst, Triton"}


@dataclass(frozen=True)
class PeersEffort(Effort):
    """Sides of the images in pixels, and images per size and peer."""

    sizes: tuple[int, ...]
    rounds: int


@dataclass(frozen=True)
class _Running:
    """A running peer: `seconds` returns the time for an image, `stylize` the result."""

    peer: Peer
    version: str
    seconds: Callable[[Pixels], float]
    stylize: Stylize


def measure(
    context: Context[PeersEffort],
    checkpoint: Checkpoint,
    server: ModelServer,
    *,
    environment: Annotated[
        Path, typer.Option(help="Virtual environment with the peers, the packages of the extra bench-peers.")
    ] = ENVIRONMENT,
) -> Document:
    """Compare nst with other runtimes and model servers.

    Runs the same model file in turns with OpenVINO, MNN, ONNX Runtime, FastAPI, LitServe and BentoML, which need their
    own virtual environment. Takes about a minute, with --full six.
    """
    python, sizes = _python(environment), context.effort.sizes
    versions = installed_packages(python, [*(peer.package for peer in PEERS), *BENEATH])
    rows: list[Document] = []
    with ExitStack() as stack:
        running = _ours(stack, server)
        for peer in PEERS:
            try:
                running.append(stack.enter_context(_started(peer, python, server, versions)))
                context.on_progress(f"{shown(peer.name)} {running[-1].version}: started")
            except MissingEngine as error:
                known = _about(peer, versions.get(peer.package))
                rows += [{**known, "size": size, "phase": "steady", "missing": str(error)} for size in sizes]
                context.on_progress(f"{shown(peer.name)}: {error}")
        for size in sizes:
            rows += _at_size(running, size, context.effort.rounds)
            steady = [row for row in rows if row["size"] == size and "ratio" in row]
            medians = (f"{shown(row['peer'])} {row['median']:.1f} ms" for row in steady)
            context.on_progress(f"{size} x {size}: {', '.join(medians)}")
    command = f"{_installation(environment)} && nst bench peers --environment {shlex.quote(str(environment))}"
    return {
        "model": describe_network(checkpoint, server.model),
        "environment": {"python": str(python), "packages": versions},
        "command": command,
        "rows": rows,
    }


def check(context: Context[PeersEffort], *, environment: Path = ENVIRONMENT) -> None:
    """Raise `InputError` for a GPU, since the peers run on the CPU, and if `environment` has no Python."""
    if context.device.gpu:
        raise InputError("peers run on the CPU only; use --device cpu with a model that is exported for the CPU")
    if not _python(environment).is_file():
        raise InputError(f"{environment}: not a virtual environment; create it with {_installation(environment)}")


def _python(environment: Path) -> Path:
    return environment / "bin" / "python"


def _installation(environment: Path) -> str:
    packages = " ".join(dict.fromkeys((*(peer.package for peer in PEERS), "uvicorn")))
    where = shlex.quote(str(environment))
    return f"python -m venv {where} && {where}/bin/pip install {packages}"


def _about(peer: Peer, version: str | None) -> Document:
    return {
        "peer": peer.name,
        "package": peer.package,
        "version": version,
        "way": peer.way,
        "runs": peer.runs,
        "engine": peer.engine,
    }


def _ours(stack: ExitStack, server: ModelServer) -> list[_Running]:
    """Return the in-process session, and the served model over HTTP and gRPC."""
    bare = Baseline(server.exported.folder)
    engine = "OpenVINO" if bare.provider == "OpenVINOExecutionProvider" else "ONNX Runtime"
    protocols = server.ways(stack)
    stylizers = {PROCESS: bare.stylize, HTTP: protocols["HTTP"], "gRPC": protocols["gRPC"]}
    return [
        _Running(Peer(OURS.get(way, OURS[HTTP]), "nst", way, engine), version("nst"), partial(_timed, stylize), stylize)
        for way, stylize in stylizers.items()
    ]


def _timed(stylize: Stylize, pixels: Pixels) -> float:
    """Return the seconds of an image."""
    return timed(partial(stylize, pixels))


def _at_size(running: list[_Running], size: int, rounds: int) -> list[Document]:
    """Measure first requests of new shapes, then `rounds` warm images of each in turn."""
    image = sample_photograph(size, size)
    ours = running[0].stylize(image).astype(int)
    rows: list[Document] = []
    differences = []
    for position, own in enumerate(running):
        shapes = [sample_photograph(size, size - narrower - position) for narrower in NARROWER]
        firsts = summarize([own.seconds(shape) for shape in shapes])
        known = _about(own.peer, own.version)
        rows.append({**known, "size": size, "phase": "first of a shape", **asdict(firsts)})
        same = own.peer.runs.startswith(SAME)
        differences.append(int(np.abs(own.stylize(image).astype(int) - ours).max()) if same else None)
        own.seconds(image)
    works = {str(position): partial(own.seconds, image) for position, own in enumerate(running)}
    taken = interleaved(works, rounds, rest=REST_SECONDS, clock=operator.call)
    summaries = [summarize(seconds) for seconds in taken.values()]
    medians = zip(running, summaries, strict=True)
    base = {own.peer.way: summary.median for own, summary in medians if own.peer.package == "nst"}
    for own, summary, difference in zip(running, summaries, differences, strict=True):
        row = {**_about(own.peer, own.version), "size": size, "phase": "steady", **asdict(summary)}
        rows.append({**row, "max_difference": difference, "ratio": summary.median / base[own.peer.way]})
    return rows


@contextmanager
def _started(peer: Peer, python: Path, server: ModelServer, versions: dict[str, str]) -> Iterator[_Running]:
    """Yield a peer that runs the served model's file; it ends with the block. Raises `MissingEngine`."""
    installed = versions.get(peer.package)
    if installed is None:
        raise MissingEngine(f"not installed; run {python.with_name('pip')} install {peer.package}")
    file = server.exported.model_file
    if not file.is_file():
        raise MissingEngine(f"{server.model} has no ONNX file; export it for the CPU")
    with start_peer(python, peer.key or peer.package, file) as process:
        yield _Running(peer, installed, process.seconds, process.stylize)


SHORT, FULL = PeersEffort((256, 512), 12), PeersEffort((256, 512, 1024), 40)

SUITE = Suite(
    name="peers",
    title="Other runtimes and servers",
    resources=served_checkpoint,
    check=check,
    measure=measure,
    tables=list_of_rows,
    effort=SHORT,
    on_cpu={"full": Cost(220, FULL)},
    rank=100,
)
