"""How long one picture takes, by size and engine: in PyTorch, in ONNX Runtime, in TensorRT, and served.

Every time begins and ends with the picture in main memory, so that a GPU's copies count and its work is done; by CUDA
shared memory alone it begins and ends on the card. Engines take turns, so that a drift of the machine hits all alike.
Three figures are never mixed: `cold` (loading and a first picture of 64 x 64), `first of a shape`, and `steady`. One
run measures one device; an engine that is not here is a row with the reason.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from nst_bench.engines.base import MissingEngine, Stylize
from nst_bench.engines.contestants import Contestant, contestants
from nst_bench.engines.pytorch import CudaTensorStylizer, pytorch_eager
from nst_bench.machine.cuda import torch_device
from nst_bench.machine.description import document_header
from nst_bench.machine.roofline import Roofline, Workload, graph_workload, network_workload
from nst_bench.measure import REST, interleaved, summarize, timed
from nst_bench.photographs import sample_photograph
from nst_bench.served.server import ModelServer
from nst_client import StyleClient
from nst_core.devices import Device
from nst_core.errors import NstError
from nst_core.images import Pixels
from nst_trainer.checkpoint import Checkpoint, parameters

SCHEMA = "nst-bench-latency/1"

SMALL = 64
"""Side of the picture with which an engine is loaded, pixels."""

NARROWER = (12, 28, 44)
"""Pixels that new shapes are narrower by; for every further engine one more, since a server is several of them."""

FEWEST, MOST = 5, 200
"""Rounds of a size."""

CUDA_SHARED_MEMORY = "served, CUDA shared memory"


@dataclass(frozen=True)
class Effort:
    """Sizes (sides in pixels), and the seconds in which all engines take turns at one of them.

    `compiled` are the sizes for engines that compile each shape for seconds, all of `sizes` if None; with a choice of
    sizes there is no cold start of these engines, which is for one more shape.
    """

    sizes: tuple[int, ...]
    seconds: float
    compiled: tuple[int, ...] | None = None

    def scaled(self, share: float) -> Effort:
        """For a share of the time; what compiles is left out first, then the largest size."""
        if share >= 1.0:
            return self
        sizes = self.sizes[:-1] if share < 0.6 and len(self.sizes) > 2 else self.sizes
        return replace(self, sizes=sizes, seconds=share * self.seconds, compiled=())


SHORT = Effort((256, 512), 12.0)
FULL = Effort((256, 512, 1024), 90.0)
CARD = Effort((256, 512, 1024), 10.0, compiled=(512,))
"""On a GPU, where a picture takes milliseconds and torch.compile half a minute a shape."""

CARD_SHORT = Effort((256, 512, 1024), 3.0, compiled=())
"""A further model on a GPU."""


@dataclass
class _Loaded:
    """An engine at work, and what its arithmetic at a size is counted from."""

    engine: Contestant
    paint: Stylize
    work: Callable[[int], Workload]
    first_of_shape: dict[int, list[float]] = field(default_factory=dict)

    def painting(self, pixels: Pixels) -> Callable[[], object]:
        """What is timed: a picture from where its caller has it."""
        return self.paint.work(pixels) if isinstance(self.paint, CudaTensorStylizer) else partial(self.paint, pixels)


def measure(
    checkpoint: Checkpoint,
    served: ModelServer,
    device: Device,
    *,
    effort: Effort = FULL,
    on_progress: Callable[[str], None] = lambda note: None,
    keep: Callable[[dict[str, Any]], None] = lambda document: None,
) -> dict[str, Any]:
    """Every engine with the network of `checkpoint`, and `served`, which was exported from it; a document.

    Its rows are described in `nst_bench.suites`; those of the steady state also have `levels`, the largest difference
    from the picture of PyTorch on the processor, of 255. `keep` gets the document after every size.
    """
    document = {**document_header(SCHEMA), "model": about(checkpoint, served.model)}
    rows: list[dict[str, Any]] = []
    reference = pytorch_eager(checkpoint.network, "CPU")
    with ExitStack() as stack:
        loaded = _load(stack, checkpoint, served, device, effort, rows, on_progress)
        for size in effort.sizes:
            rows += _at_size(loaded, reference, size, effort, document["machine"])
            on_progress(_note(rows, size))
            keep({**document, "rows": rows})
    return {**document, "rows": rows}


def about(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """What a document says of its model."""
    network = checkpoint.network
    return {"name": name, "network": network.name, **network.arguments, "parameters": parameters(network)}


def _load(
    stack: ExitStack,
    checkpoint: Checkpoint,
    served: ModelServer,
    device: Device,
    effort: Effort,
    rows: list[dict[str, Any]],
    on_progress: Callable[[str], None],
) -> list[_Loaded]:
    """The engines that paint here; rows of the cold start, and of those that do not."""
    network, exported = checkpoint.network, served.exported
    file = exported.graph

    def of_file(size: int) -> Workload:
        return graph_workload(file, network, size) if file else network_workload(network, size)

    def of_module(size: int) -> Workload:
        return network_workload(network, size)

    loaded = []
    small = sample_photograph(SMALL, SMALL)
    for engine in contestants(network, exported, device, on_progress=on_progress):
        about = {"engine": engine.name, "device": engine.device}
        if engine.compiles and effort.compiled == () and engine.device == exported.device:
            rows += [{**about, "size": size, "phase": "steady", "missing": _COMPILES} for size in effort.sizes]
            continue
        try:
            paints: list[Stylize] = []
            seconds = timed(lambda engine=engine, paints=paints: paints.append(engine.load()))  # type: ignore[misc]
            sparing = engine.compiles and effort.compiled is not None  # the small picture would be compiled for, too
            seconds += 0.0 if sparing else timed(partial(paints[0], small))
        except Exception as error:
            rows += [{**about, "size": size, "phase": "steady", "missing": _reason(error)} for size in effort.sizes]
            on_progress(f"{engine.name} ({engine.device}): {_reason(error)}")
            continue
        if not sparing:
            rows.append({**about, "size": None, "phase": "cold", **asdict(summarize([seconds]))})
            on_progress(f"{engine.name} ({engine.device}): loaded, with a first picture, in {seconds:.1f} s")
        work = of_module if engine.name.startswith("PyTorch") else of_file
        loaded.append(_Loaded(engine, paints[0], work))
    for way, paint in ways(stack, served, served.style).items():
        loaded.append(_Loaded(Contestant(way, exported.device, lambda paint=paint: paint), paint, of_file))  # type: ignore[misc]
    on_card = Contestant(CUDA_SHARED_MEMORY, "GPU", partial(_on_card, stack, served, device, small))
    try:
        loaded.append(_Loaded(on_card, on_card.load(), of_file))
    except Exception as error:
        about = {"engine": CUDA_SHARED_MEMORY, "device": "GPU", "phase": "steady"}
        rows += [{**about, "size": size, "missing": _reason(error)} for size in effort.sizes]
    return loaded


_COMPILES = "no time left: torch.compile takes half a minute for each shape"


def _reason(error: Exception) -> str:
    """Why an engine does not paint, in one line; what it did not say itself is a defect that keeps its traceback."""
    if isinstance(error, NstError):
        return str(error)
    traceback.print_exception(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


def ways(stack: ExitStack, served: ModelServer, style: str) -> dict[str, Stylize]:
    """The served model by every protocol, and by `local:` without the server; clients are closed with the stack."""
    ends = served.endpoints
    clients = {
        "in the process (local:)": (f"local:{served.repository}", False),
        "served, HTTP": (ends.http, False),
        "served, gRPC": (ends.grpc, False),
        "served, shared memory": (ends.grpc, True),
    }
    return {
        way: partial(stack.enter_context(StyleClient(url, timeout=300.0, shared_memory=shared)).stylize, style=style)
        for way, (url, shared) in clients.items()
    }


def _on_card(stack: ExitStack, served: ModelServer, device: Device, small: Pixels) -> CudaTensorStylizer:
    """The served model by CUDA shared memory, which has painted once. Raises `MissingEngine`."""
    if device.gpu is None:
        raise MissingEngine(device.reason)
    torch_device(device)
    client = stack.enter_context(StyleClient(served.endpoints.grpc, timeout=300.0))
    paint = CudaTensorStylizer(partial(client.stylize, style=served.style))
    paint(small)
    return paint


def _at_size(
    loaded: list[_Loaded], reference: Stylize, size: int, effort: Effort, machine: dict[str, Any]
) -> list[dict[str, Any]]:
    picture = sample_photograph(size, size)
    wanted = reference(picture).astype(int)
    rows: list[dict[str, Any]] = []
    levels: list[int] = []
    painting: list[_Loaded] = []
    for position, one in enumerate(loaded):
        shapes = [sample_photograph(size, size - narrower - position) for narrower in NARROWER]
        try:
            if one.engine.compiles and effort.compiled is not None and size not in effort.compiled:
                raise MissingEngine("not compiled for this size, which takes half a minute")
            shown = [picture] if one.engine.compiles else shapes
            firsts = [timed(one.painting(pixels)) for pixels in shown]
            levels.append(int(np.abs(one.paint(picture).astype(int) - wanted).max()))
            one.paint(picture)
        except Exception as error:
            about = {"engine": one.engine.name, "device": one.engine.device, "size": size, "phase": "steady"}
            rows.append({**about, "missing": _reason(error)})
            continue
        painting.append(one)
        rows.append(_row(one, size, "first of a shape", firsts))
    works = {f"{position}": one.painting(picture) for position, one in enumerate(painting)}
    turn = timed(lambda: [work() for work in works.values()]) + REST * len(works)
    samples = interleaved(works, min(MOST, max(FEWEST, round(effort.seconds / turn))), rest=REST)
    for one, level, seconds in zip(painting, levels, samples.values(), strict=True):
        row = _row(one, size, "steady", seconds)
        ceiling = Roofline.of(machine, one.engine.device)
        rows.append({**row, "levels": level, **ceiling.shares(one.work(size), row["median"])})
    return rows


def _row(one: _Loaded, size: int, phase: str, seconds: list[float]) -> dict[str, Any]:
    about = {"engine": one.engine.name, "device": one.engine.device, "size": size, "phase": phase}
    return {**about, **asdict(summarize(seconds))}


def _note(rows: list[dict[str, Any]], size: int) -> str:
    steady = [row for row in rows if row["size"] == size and row["phase"] == "steady" and "median" in row]
    steady.sort(key=lambda row: float(row["median"]))
    return f"{size} x {size}: " + ", ".join(f"{row['engine']} {row['median']:.1f} ms" for row in steady)
