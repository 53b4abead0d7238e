"""Latency of one image, by size and engine: PyTorch, ONNX Runtime, TensorRT, and served.

Every time starts and ends with the image in main memory, so that copies to and from a GPU count and its work is done;
with CUDA shared memory it starts and ends on the GPU. Engines take turns, so that a drift of the machine affects all
alike. Three figures are kept apart: `cold` (loading, and a first image of 64 x 64), `first of a shape`, and `steady`.
A document measures one device; an engine that is not available has a row with the reason.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from nst_bench.drawing.plots import decades, figure, seconds
from nst_bench.drawing.tables import list_of_rows, short
from nst_bench.drawing.words import shown
from nst_bench.engines.base import MissingEngine, Stylize
from nst_bench.engines.pytorch import CudaTensorStylizer, pytorch_eager
from nst_bench.engines.registry import every_engine
from nst_bench.machine.gpu import torch_device
from nst_bench.machine.roofline import Workload, graph_workload, network_workload
from nst_bench.measure import in_turns, summarize, timed
from nst_bench.photographs import sample_photograph
from nst_bench.served.resources import describe_network, served_checkpoint
from nst_bench.served.server import ModelServer
from nst_bench.suite import Context, Cost, Document, Effort, Plot, Suite
from nst_client import StyleClient
from nst_core.devices import Device
from nst_core.errors import NstError
from nst_core.images import Pixels
from nst_trainer.checkpoint import Checkpoint

SMALL_PIXELS = 64
"""Side of an engine's first image."""

NARROWER = (12, 28, 44)
"""How many pixels narrower new shapes are; one more per engine, since several engines share a server."""

FEWEST_ROUNDS, MOST_ROUNDS = 5, 200
"""Rounds per size."""

CUDA_SHARED_MEMORY = "served, CUDA shared memory"


@dataclass(frozen=True)
class LatencyEffort(Effort):
    """Sizes (sides in pixels), and the seconds in which all engines take turns at each size.

    `compiled` are the sizes of the engines that compile for seconds per shape, None for all of `sizes`. If given,
    their cold start is not measured, as it would take one more shape.
    """

    sizes: tuple[int, ...]
    seconds: float
    compiled: tuple[int, ...] | None = None

    takes_time = ("seconds",)

    def scaled(self, share: float) -> LatencyEffort:
        """Return the effort for a share of the time: without compiling engines, then without the largest size."""
        sizes = self.sizes[:-1] if share < 0.6 and len(self.sizes) > 2 else self.sizes
        return replace(super().scaled(share), sizes=sizes, compiled=())


def measure(context: Context[LatencyEffort], checkpoint: Checkpoint, server: ModelServer) -> Document:
    """Measure latency by image size and engine.

    Compares PyTorch, ONNX Runtime, TensorRT and the server over every protocol. Takes about two minutes, with --full
    ten.
    """
    document: Document = {"model": describe_network(checkpoint, server.model), "rows": []}
    rows: list[Document] = document["rows"]
    reference = pytorch_eager(checkpoint.network, "CPU")
    with ExitStack() as stack:
        loaded = _load(stack, checkpoint, server, context, rows)
        for size in context.effort.sizes:
            rows += _at_size(loaded, reference, size, context.effort, context.machine)
            context.on_progress(_note(rows, size))
            context.keep(document)
    return document


@dataclass(frozen=True)
class _Engine:
    """A loaded engine, and the workload of a size."""

    name: str
    device: str
    stylize: Stylize
    workload: Callable[[int], Workload]
    compiles: bool = False

    def work(self, pixels: Pixels) -> Callable[[], object]:
        """Return what is timed: stylizing an image from where the client has it."""
        if isinstance(self.stylize, CudaTensorStylizer):
            return self.stylize.work(pixels)
        return partial(self.stylize, pixels)

    def about(self, size: int, phase: str) -> Document:
        """Return the fields that identify a row."""
        return {"engine": self.name, "device": self.device, "size": size, "phase": phase}


def _load(
    stack: ExitStack, checkpoint: Checkpoint, server: ModelServer, context: Context[LatencyEffort], rows: list[Document]
) -> list[_Engine]:
    """Load the engines that run here; adds rows of cold starts, and of engines that do not run."""
    network, exported, effort = checkpoint.network, server.exported, context.effort
    small, file = sample_photograph(SMALL_PIXELS, SMALL_PIXELS), exported.graph
    of_module = partial(network_workload, network)
    of_file = partial(graph_workload, file, network) if file else of_module
    loaded = []

    def missing(name: str, device: str, error: Exception) -> None:
        about = {"engine": name, "device": device}
        rows.extend({**about, "size": size, "phase": "steady", "missing": _reason(error)} for size in effort.sizes)
        context.on_progress(f"{name} ({device}): {_reason(error)}")

    for engine in every_engine(network, exported, context.device, on_progress=context.on_progress):
        about = {"engine": engine.name, "device": engine.device}
        sparing = engine.compiles and effort.compiled is not None  # the small image would be compiled for, too
        try:
            if engine.compiles and effort.compiled == () and engine.device == exported.device:
                raise MissingEngine("skipped for lack of time; torch.compile takes half a minute per shape")
            begun = time.perf_counter()
            stylize = engine.load()
            if not sparing:
                stylize(small)
                summary = summarize([time.perf_counter() - begun])
                rows.append({**about, "size": None, "phase": "cold", **asdict(summary)})
                loading = f"loaded and ran a first image in {summary.median / 1000:.1f} s"
                context.on_progress(f"{engine.name} ({engine.device}): {loading}")
        except Exception as error:
            missing(engine.name, engine.device, error)
            continue
        workload = of_module if engine.name.startswith("PyTorch") else of_file
        loaded.append(_Engine(engine.name, engine.device, stylize, workload, engine.compiles))
    for way, stylize in server.ways(stack).items():
        name = "in the process (local:)" if way == "local" else f"served, {way}"
        loaded.append(_Engine(name, exported.device, stylize, of_file))
    try:
        loaded.append(_Engine(CUDA_SHARED_MEMORY, "GPU", _on_card(stack, server, context.device, small), of_file))
    except Exception as error:
        missing(CUDA_SHARED_MEMORY, "GPU", error)
    return loaded


def _reason(error: Exception) -> str:
    """Return in one line why an engine does not run; unexpected errors also print their traceback."""
    if isinstance(error, NstError):
        return str(error)
    traceback.print_exception(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


def _on_card(stack: ExitStack, server: ModelServer, device: Device, small: Pixels) -> CudaTensorStylizer:
    """Return the served model over CUDA shared memory, after a first image. Raises `MissingEngine`."""
    if device.gpu is None:
        raise MissingEngine(device.reason)
    torch_device(device)
    client = stack.enter_context(StyleClient(server.endpoints.grpc, timeout=300.0))
    stylize = CudaTensorStylizer(partial(client.stylize, style=server.style))
    stylize(small)
    return stylize


def _at_size(
    loaded: list[_Engine], reference: Stylize, size: int, effort: LatencyEffort, machine: Document
) -> list[Document]:
    """Return the rows of all engines: first requests of new shapes, and warm runs in turns."""
    image = sample_photograph(size, size)
    wanted = reference(image).astype(int)
    rows: list[Document] = []
    differences: list[int] = []
    running: list[_Engine] = []
    for position, own in enumerate(loaded):
        try:
            if own.compiles and effort.compiled is not None and size not in effort.compiled:
                raise MissingEngine("skipped at this size; torch.compile takes half a minute per shape")
            shapes = [sample_photograph(size, size - narrower - position) for narrower in NARROWER]
            firsts = [timed(own.work(pixels)) for pixels in ([image] if own.compiles else shapes)]
            differences.append(int(np.abs(own.stylize(image).astype(int) - wanted).max()))
            own.stylize(image)
        except Exception as error:
            rows.append({**own.about(size, "steady"), "missing": _reason(error)})
            continue
        running.append(own)
        rows.append({**own.about(size, "first of a shape"), **asdict(summarize(firsts))})
    works = {str(position): own.work(image) for position, own in enumerate(running)}
    summaries = in_turns(works, effort.seconds, FEWEST_ROUNDS, MOST_ROUNDS).values()
    for own, difference, summary in zip(running, differences, summaries, strict=True):
        shares = own.workload(size).shares(machine, own.device, summary.median)
        rows.append({**own.about(size, "steady"), **asdict(summary), "max_difference": difference, **shares})
    return rows


def _note(rows: list[Document], size: int) -> str:
    steady = [row for row in rows if row["size"] == size and row["phase"] == "steady" and "median" in row]
    steady.sort(key=lambda row: float(row["median"]))
    return f"{size} x {size}: " + ", ".join(f"{shown(row['engine'])} {row['median']:.1f} ms" for row in steady)


def plot(own: Mapping[str, Document], machine: str) -> Plot | None:
    """Draw latency by size, one line per engine; the bar above a point ends at the 95th percentile.

    If this suite was not measured, draws the single requests of `serving`.
    """
    rows: list[tuple[str, int, Document]] = []
    if "latency" in own:
        steady = [row for row in own["latency"]["rows"] if "median" in row and row["phase"] == "steady"]
        several = len({row["device"] for row in steady}) > 1
        rows = [(f"{row['engine']}, {row['device']}" if several else row["engine"], row["size"], row) for row in steady]
    elif "serving" in own:
        rows = [(row["way"], row["size"], row) for row in own["serving"]["latency"]]
    return _drawn(rows, machine) if rows else None


def _drawn(rows: Sequence[tuple[str, int, Document]], machine: str) -> Plot:
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for engine, size, row in rows:
        lines.setdefault(shown(engine), []).append((size, row["median"], row["p95"]))
    with figure("latency-by-size", f"Latency by size\n{machine}") as (axes, finish):
        for position, (engine, points) in enumerate(lines.items()):
            sizes, medians, p95 = (np.array(values) for values in zip(*sorted(points), strict=True))
            above = np.maximum(p95 - medians, 0.0)
            bars, style = [np.zeros_like(above), above], "-" if position < 10 else "--"
            axes.errorbar(sizes, medians, bars, fmt=f"o{style}", capsize=2, markersize=3, label=engine)
        axes.set_xscale("log", base=2)
        ticks = sorted({size for _, size, _ in rows})
        axes.set_xticks(ticks, [f"{size}²" for size in ticks])
        axes.set(yscale="log", xlabel="image size", ylabel="median; bar up to p95 (log scale)")
        decades(axes.yaxis, lambda value: seconds(value / 1000))
        if len(lines) > 6:
            axes.figure.legend(loc="outside lower center", ncols=3)
        else:
            axes.legend()
        largest = [f"{shown(engine)} {short(row['median'])}" for engine, size, row in rows if size == ticks[-1]]
        return finish(f"Latency by size on {machine}. Medians at {ticks[-1]}², milliseconds: {', '.join(largest)}.")


SHORT = LatencyEffort((256, 512), 12.0)
FULL = LatencyEffort((256, 512, 1024), 90.0)
GPU = LatencyEffort((256, 512, 1024), 10.0, compiled=(512,))
"""On a GPU, an image takes milliseconds, and torch.compile half a minute per shape."""

SUITE = Suite(
    name="latency",
    title="Latency by size",
    resources=served_checkpoint,
    measure=measure,
    tables=list_of_rows,
    plots=(plot,),
    effort=SHORT,
    on_cpu={
        "default": Cost(100, SHORT),
        "full": Cost(350, FULL),
        "further": Cost(60, replace(SHORT, compiled=())),
    },
    on_gpu={
        **dict.fromkeys(("command", "default", "full"), Cost(90, GPU)),
        "further": Cost(35, replace(GPU, seconds=3.0, compiled=())),
    },
    rank=20,
)
