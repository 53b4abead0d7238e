"""The methods that nst implements, compared as in Jing et al. 2019, *Neural Style Transfer: A Review*.

Seconds and memory by size, styles per network, loss, and the time to a new style. All methods run in PyTorch, each in
its own process, and the processes take turns. Speed and memory do not depend on the weights: a method without a
trained checkpoint is measured with an untrained network of the paper's width, and marked. Losses are those of trained
checkpoints, as their training measured them on held-out photographs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from nst_bench import options
from nst_bench.drawing.tables import Cell, by_phase, columns, table, text
from nst_bench.engines.pytorch import pytorch_eager
from nst_bench.machine.gpu import torch_device
from nst_bench.machine.roofline import Workload, network_workload
from nst_bench.measure import interleaved, summarize, timed
from nst_bench.photographs import content_tensor, sample_photograph, style_tensor
from nst_bench.suite import Context, Cost, Document, Effort, Suite
from nst_bench.suites import gatys
from nst_bench.workers import Worker
from nst_core.devices import Device
from nst_core.images import sample_photographs
from nst_core.process import keep_freed_memory
from nst_trainer.checkpoint import Checkpoint, frozen, load, parameters
from nst_trainer.networks import Fast, Johnson, StyledNetwork, Ulyanov
from nst_trainer.optimization.gatys import ImageOptimization
from nst_trainer.optimization.settings import PRESETS, OptimizationSettings
from nst_trainer.weights import vgg16_weights

ITERATIONS = 300
"""Iterations of the optimisation per image; the time is extrapolated from a few."""

GATYS, JOHNSON, ULYANOV = "Gatys et al. 2016", "Johnson et al. 2016", "Ulyanov et al. 2016"
FAST = "Johnson et al. 2016, rearranged for CPUs"
MANY, ADDED = "many styles in one network (Dumoulin et al. 2017)", "a style added to a trained network"

UNTRAINED: dict[str, Callable[[], StyledNetwork]] = {
    JOHNSON: Johnson,
    FAST: Fast,
    ULYANOV: Ulyanov,
    MANY: partial(Johnson, styles=16),
    ADDED: partial(Johnson, styles=17),
}
"""Networks of methods without a checkpoint; the number of styles is arbitrary."""


UNKNOWN = "no trained checkpoint of this method"
"""Why a figure of the training is missing."""


@dataclass(frozen=True)
class MethodsEffort(Effort):
    """Sides of the images in pixels, ascending, and the images or iterations per method and size."""

    sizes: tuple[int, ...]
    rounds: int


@dataclass(frozen=True)
class Method:
    """A method: its network (None for the optimisation), its trained checkpoint, and that file's name."""

    name: str
    network: StyledNetwork | None = None
    trained: Checkpoint | None = None
    source: str = ""


def measure(
    context: Context[MethodsEffort],
    *,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(help="Checkpoints (.pth); by default those that ship with nst.", metavar="CHECKPOINT"),
    ] = None,
    vgg: options.Vgg = None,
) -> Document:
    """Compare style-transfer methods by speed, memory and loss.

    Also says how many styles a network has, and the time to a new style. Takes about half a minute, with --full four
    minutes.
    """
    torch_device(context.device)
    found = methods(checkpoints or sorted(options.GALLERY.parent.glob("*.pth")))
    rows: list[Document] = []
    for size in context.effort.sizes:
        own = _at_size(found, size, vgg, context)
        rows += own
        times = (f"{row['method']} {row['image_seconds']:.3g} s" for row in own)
        context.on_progress(f"{size} x {size}: {', '.join(times)}")
    return {"methods": [_described(method) for method in found], "rows": rows}


def methods(checkpoints: Sequence[Path]) -> list[Method]:
    """Return the optimisation and every kind of network, each with the first checkpoint of its kind, if any."""
    found: dict[str, Method] = {}
    for path in checkpoints:
        trained = load(path)
        network = trained.network
        if network.arguments.get("texture"):
            continue
        several = ADDED if "before" in trained.training else MANY
        kind = several if network.styles > 1 else {"ulyanov": ULYANOV, "fast": FAST}.get(network.name, JOHNSON)
        found.setdefault(kind, Method(kind, network, trained, path.stem))
    untrained = {kind: Method(kind, frozen(made())) for kind, made in UNTRAINED.items() if kind not in found}
    return [Method(GATYS), *((found | untrained)[kind] for kind in UNTRAINED)]


def _described(method: Method) -> Document:
    """Return what does not depend on the image size."""
    network = method.network
    return {
        "method": method.name,
        "network": network and network.name,
        "parameters": network and parameters(network),
        "styles": network and network.styles,
        "loss": loss_of(method),
        "new_style": new_style_of(method),
    }


def loss_of(method: Method) -> Document:
    """Return the weighted loss on held-out photographs, as the training measured it; it depends on the style image."""
    if method.network is None:
        return {"missing": "falls with every iteration; see the speed-up at equal loss"}
    if method.trained is None or (value := method.trained.metrics.get("held out total")) is None:
        return {"missing": UNKNOWN}
    size = method.trained.training.get("crop")
    return {"value": value, "size": size, "photos": len(sample_photographs()), "of": method.source}


def new_style_of(method: Method) -> Document:
    """Return the seconds until a new style image can be used, as recorded by the training."""
    if method.network is None:
        return {"seconds": 0.0, "from": "nothing is trained"}
    if method.trained is None:
        return {"missing": UNKNOWN}
    known = method.trained.training
    if "seconds" not in known:
        return {"missing": f"{method.source} has no record of its training time"}
    learned = len(known.get("style_images", ())) or 1
    device = known.get("device", "CPU")  # older checkpoints were trained on a CPU
    begun = f", starting from {start}" if (start := known.get("from")) else ""
    source = f"{method.source}'s {'last ' if begun else ''}training of {learned} style(s), {device}{begun}"
    return {"seconds": known["seconds"] / learned, "from": source}


def _at_size(found: Sequence[Method], size: int, vgg: Path | None, context: Context[MethodsEffort]) -> list[Document]:
    """Measure each method in its own process, in turns."""
    with ExitStack() as stack:
        workers = {
            method.name: stack.enter_context(Worker(partial(_work, method.network, size, vgg, context.device)))
            for method in found
        }
        works = {name: partial(worker.ask, timed) for name, worker in workers.items()}  # timed in the worker process
        taken = interleaved(works, 1 + context.effort.rounds, clock=operator.call)
        peak = partial(_peak_mib, torch_device(context.device))
        peaks = {name: worker.ask(peak) for name, worker in workers.items()}
    rows = []
    for method in found:
        summary = summarize(taken[method.name][1:])  # without the first image of the process
        iterations = 1 if method.network else ITERATIONS
        about = {"method": method.name, "size": size, "trained": method.trained is not None, "iterations": iterations}
        costs = {"image_seconds": iterations * summary.median / 1000.0, "peak_mib": peaks[method.name]}
        shares = _workload(method, size, vgg).shares(context.machine, context.device.kind.upper(), summary.median)
        rows.append({**about, **asdict(summary), **costs, **shares})
    return rows


def _workload(method: Method, size: int, vgg: Path | None) -> Workload:
    """Return the workload of a method; of the optimisation only the arithmetic."""
    if method.network:
        return network_workload(method.network, size)
    return Workload(gatys.gflop(_settings(size), vgg16_weights(vgg), size), None)


def _settings(size: int) -> OptimizationSettings:
    return replace(PRESETS["johnson2016-baseline"], size=size, iterations=ITERATIONS)


def _work(network: StyledNetwork | None, size: int, vgg: Path | None, device: Device) -> Callable[[], object]:
    """Return a pass of a network, or an iteration of the optimisation with a photograph as the style image."""
    where = torch_device(device)
    if network:
        return partial(pytorch_eager(network, device.kind.upper()), sample_photograph(size, size))
    keep_freed_memory()  # as nst's commands do
    run = ImageOptimization(content_tensor(size), [style_tensor()], _settings(size), vgg16_weights(vgg), device=where)

    def iterate() -> None:
        run.step(lambda iteration: None)
        if where.type == "cuda":
            torch.cuda.synchronize(where)

    return iterate


def _peak_mib(where: torch.device, work: Callable[[], object]) -> float:
    """Return the peak memory of this process, or of its GPU memory; `getrusage` would include the parent's."""
    if where.type == "cuda":
        return torch.cuda.max_memory_reserved(where) / 2**20
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024.0
    return float("nan")


def tables(document: Document) -> list[str]:
    """Render the comparison of methods, as in Jing et al. 2019."""
    about: dict[str, Cell] = {
        **columns("method | network | parameters", "{method} | {network} | {parameters:,}"),
        "styles": lambda row: "any" if row["styles"] is None else str(row["styles"]),
        "loss": lambda row: _or_why_not("{value:.3f} ({of})", row["loss"]),
        "time to a new style": lambda row: _or_why_not("{seconds:,.0f} s, {from}", row["new_style"]),
    }
    return [*table(document["methods"], about, left=6), "", *by_phase(document["rows"])]


def in_words(document: Document) -> str:
    """Render the speed, memory, styles and time to a new style of each method at one size, as a small table."""
    sizes = [row["size"] for row in document["rows"]]
    size = SHOWN_SIZE if SHOWN_SIZE in sizes else max(sizes)
    described = {row["method"]: row for row in document["methods"]}
    rows = [row | {"about": described[row["method"]]} for row in document["rows"] if row["size"] == size]
    about: dict[str, Cell] = {
        "method": "{method}",
        "styles": lambda row: "any" if row["about"]["styles"] is None else str(row["about"]["styles"]),
        "time to a new style": lambda row: text("{seconds:,.0f} s", row["about"]["new_style"]),
        f"s per image at {size}²": "{image_seconds:digits}",
        "peak memory, MiB": "{peak_mib:digits}",
    }
    return "\n".join([*table(rows, about, left=1), ""])


def _or_why_not(form: str, found: Document) -> str:
    return text("*{missing}*" if "missing" in found else form, found)


SHOWN_SIZE = 512
"""Side of the images in the small table, in pixels."""

SHORT, FULL = MethodsEffort((256,), 5), MethodsEffort((256, 512, 1024), 7)

SUITE = Suite(
    name="methods",
    title="Methods",
    measure=measure,
    tables=tables,
    in_words=in_words,
    effort=SHORT,
    on_cpu={"full": Cost(240, FULL)},
    on_gpu={"full": Cost(240, FULL)},
    rank=90,
)
