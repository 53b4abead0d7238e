"""How long one picture takes, by size and engine: in PyTorch, in ONNX Runtime, and served.

Every time begins and ends with the picture in main memory, so that a GPU's copies count and its work is done.
Engines take turns, so that a drift of the machine hits all alike. Three figures are never mixed: `cold` (loading and a
first picture of 64 x 64), `first of a shape`, and `steady`. An engine that is not here is a row with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from nst_bench.ceiling import Ceiling, Work, of_graph, of_network
from nst_bench.engines import Engine, MissingEngine, Paint, Served, in_process, photograph
from nst_bench.machine import header
from nst_bench.measure import REST, interleaved, summarize, timed
from nst_client import StyleClient
from nst_trainer.checkpoint import Checkpoint, parameters

SCHEMA = "nst-bench-latency/1"

SMALL = 64
"""Side of the picture with which an engine is loaded, pixels."""

NARROWER = (12, 28, 44)
"""Pixels that new shapes are narrower by; for every further engine one more, since a server is several of them."""

FEWEST, MOST = 5, 200
"""Rounds of a size."""


@dataclass(frozen=True)
class Effort:
    """Sizes (sides in pixels), and the seconds in which all engines take turns at one of them."""

    sizes: tuple[int, ...]
    seconds: float


SHORT = Effort((256, 512), 12.0)
FULL = Effort((256, 512, 1024), 90.0)


@dataclass
class _Loaded:
    """An engine at work, and what its arithmetic at a size is counted from."""

    engine: Engine
    paint: Paint
    work: Callable[[int], Work]
    first_of_shape: dict[int, list[float]] = field(default_factory=dict)


def measure(
    checkpoint: Checkpoint, served: Served, *, effort: Effort = FULL, tick: Callable[[str], None] = lambda note: None
) -> dict[str, Any]:
    """Every engine with the network of `checkpoint`, and `served`, which was exported from it; a document.

    Its rows are described in `nst_bench.suites`; those of the steady state also have `levels`, the largest difference
    from PyTorch's picture, of 255.
    """
    document = header(SCHEMA)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        loaded = _load(stack, checkpoint, served, effort, rows, tick)
        for size in effort.sizes:
            rows += _at_size(loaded, size, effort, document["machine"])
            tick(_note(rows, size))
    return {**document, "model": about(checkpoint, served.model), "rows": rows}


def about(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """What a document says of its model."""
    network = checkpoint.network
    return {"name": name, "network": network.name, **network.arguments, "parameters": parameters(network)}


def _load(
    stack: ExitStack,
    checkpoint: Checkpoint,
    served: Served,
    effort: Effort,
    rows: list[dict[str, Any]],
    tick: Callable[[str], None],
) -> list[_Loaded]:
    """The engines that paint here; rows of the cold start, and of those that do not."""
    network = checkpoint.network
    graphs = [served.version / name for name in ("model.onnx", "reference.onnx")]
    file = next((path for path in graphs if path.is_file()), None)

    def of_file(size: int) -> Work:
        return of_graph(file, network, size) if file else of_network(network, size)

    def of_module(size: int) -> Work:
        return of_network(network, size)

    loaded = []
    small = photograph(SMALL, SMALL)
    for engine in in_process(network, file):
        about = {"engine": engine.name, "device": engine.device}
        try:
            paints: list[Paint] = []
            seconds = timed(lambda engine=engine, paints=paints: paints.append(engine.load()))  # type: ignore[misc]
            seconds += timed(partial(paints[0], small))
        except MissingEngine as error:
            rows += [{**about, "size": size, "phase": "steady", "missing": str(error)} for size in effort.sizes]
            tick(f"{engine.name} ({engine.device}): {error}")
            continue
        rows.append({**about, "size": None, "phase": "cold", **asdict(summarize([seconds]))})
        tick(f"{engine.name} ({engine.device}): loaded, with a first picture, in {seconds:.1f} s")
        work = of_module if engine.name.startswith("PyTorch") else of_file
        loaded.append(_Loaded(engine, paints[0], work))
    style = served.style
    for way, paint in ways(stack, served, style).items():
        loaded.append(_Loaded(Engine(way, served.device, lambda paint=paint: paint), paint, of_file))  # type: ignore[misc]
    return loaded


def ways(stack: ExitStack, served: Served, style: str) -> dict[str, Paint]:
    """The served model by every protocol; clients are closed with the stack."""
    urls = {"served, HTTP": (served.endpoints.http, False), "served, gRPC": (served.endpoints.grpc, False)}
    urls["served, shared memory"] = (served.endpoints.grpc, True)
    return {
        way: partial(stack.enter_context(StyleClient(url, timeout=300.0, shared_memory=shared)).stylize, style=style)
        for way, (url, shared) in urls.items()
    }


def _at_size(loaded: list[_Loaded], size: int, effort: Effort, machine: dict[str, Any]) -> list[dict[str, Any]]:
    picture = photograph(size, size)
    reference = loaded[0].paint(picture)  # PyTorch eager on the CPU is always there
    rows: list[dict[str, Any]] = []
    levels = {}
    for position, one in enumerate(loaded):
        shapes = [photograph(size, size - narrower - position) for narrower in NARROWER]
        firsts = [timed(partial(one.paint, pixels)) for pixels in ([picture] if one.engine.compiles else shapes)]
        rows.append(_row(one, size, "first of a shape", firsts))
        levels[id(one)] = int(np.abs(one.paint(picture).astype(int) - reference.astype(int)).max())
        one.paint(picture)
    works: dict[str, Callable[[], object]] = {
        f"{position}": partial(one.paint, picture) for position, one in enumerate(loaded)
    }
    rounds = min(MOST, max(FEWEST, round(effort.seconds / timed(lambda: [work() for work in works.values()]))))
    samples = interleaved(works, rounds, rest=REST)
    for one, seconds in zip(loaded, samples.values(), strict=True):
        row = _row(one, size, "steady", seconds)
        ceiling = Ceiling.of(machine, one.engine.device)
        rows.append({**row, "levels": levels[id(one)], **ceiling.shares(one.work(size), row["median"])})
    return rows


def _row(one: _Loaded, size: int, phase: str, seconds: list[float]) -> dict[str, Any]:
    about = {"engine": one.engine.name, "device": one.engine.device, "size": size, "phase": phase}
    return {**about, **asdict(summarize(seconds))}


def _note(rows: list[dict[str, Any]], size: int) -> str:
    steady = [row for row in rows if row["size"] == size and row["phase"] == "steady" and "median" in row]
    steady.sort(key=lambda row: float(row["median"]))
    return f"{size} x {size}: " + ", ".join(f"{row['engine']} {row['median']:.1f} ms" for row in steady)
