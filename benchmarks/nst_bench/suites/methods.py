"""The methods that are here, as in the table of Jing et al. 2019, *Neural Style Transfer: A Review*.

Seconds and memory by size, styles of one network, the loss, and the time to a new style. All paint in PyTorch, each in
a process of its own, and the processes take turns. Speed and memory do not depend on what was learned: a method
without a trained checkpoint is measured with an untrained network of the paper's width, and says so. Losses are those
of trained checkpoints alone, as their training measured them on photographs that it held out.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from nst_bench.engines.pytorch import pytorch_eager
from nst_bench.machine.cuda import torch_device
from nst_bench.machine.description import document_header
from nst_bench.machine.roofline import Roofline, network_workload
from nst_bench.measure import summarize, timed
from nst_bench.photographs import sample_photograph
from nst_bench.suites import gatys
from nst_core.devices import Device
from nst_core.errors import NstError
from nst_core.images import ImageData, open_image, sample_photographs
from nst_core.memory import keep_freed_memory
from nst_trainer.checkpoint import Checkpoint, frozen, load, parameters
from nst_trainer.images import to_tensor
from nst_trainer.networks import ARCHITECTURES
from nst_trainer.optimization.gatys import ImageOptimization
from nst_trainer.optimization.settings import PRESETS, OptimizationSettings
from nst_trainer.weights import vgg16_weights

SCHEMA = "nst-bench-methods/1"

ITERATIONS = 300
"""Of the optimisation, for a picture; they are scaled from the seconds of some."""

GATYS, JOHNSON, ULYANOV = "Gatys et al. 2016", "Johnson et al. 2016", "Ulyanov et al. 2016"
FAST = "Johnson et al. 2016, rearranged for CPUs"
MANY, ADDED = "many styles in one network (Dumoulin et al. 2017)", "a style added to a trained network"

UNTRAINED: dict[str, dict[str, Any]] = {
    JOHNSON: {"name": "johnson", "arguments": {"width": 1.0}},
    FAST: {"name": "fast", "arguments": {"width": 1.0}},
    ULYANOV: {"name": "ulyanov", "arguments": {"width": 1.0}},
    MANY: {"name": "johnson", "arguments": {"width": 1.0, "styles": 16}},
    ADDED: {"name": "johnson", "arguments": {"width": 1.0, "styles": 17}},
}
"""What stands in for a method of which there is no checkpoint; the number of styles is free."""


@dataclass(frozen=True)
class Effort:
    """Sides of the pictures in pixels, ascending, and the pictures or iterations of each method at each."""

    sizes: tuple[int, ...]
    rounds: int


SHORT = Effort((256,), 5)
FULL = Effort((256, 512, 1024), 7)


class MethodError(NstError):
    """A method's process ended before its answer."""


@dataclass(frozen=True)
class Method:
    """A method: its network, or None for the optimisation, and the checkpoint that it was trained to."""

    name: str
    architecture: dict[str, Any] | None = None
    trained: Checkpoint | None = None
    source: str | None = None


def measure(
    checkpoints: Sequence[Path],
    device: Device,
    *,
    vgg: Path | None = None,
    effort: Effort = FULL,
    on_progress: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """Every method on `device`, those of `checkpoints` with their networks; a document.

    Raises `CheckpointError`, or `InputError` if PyTorch cannot use the GPU.
    """
    torch_device(device)
    document = document_header(SCHEMA)
    found = methods(checkpoints)
    ceiling = Roofline.of(document["machine"], device.kind.upper())
    rows: list[dict[str, Any]] = []
    for size in effort.sizes:
        rows += _at_size(found, size, vgg, effort, ceiling, device)
        on_progress(
            f"{size} x {size}: "
            + ", ".join(f"{row['method']} {row['picture_seconds']:.3g} s" for row in rows[-len(found) :])
        )
    return {**document, "methods": [_described(method) for method in found], "rows": rows}


def methods(checkpoints: Sequence[Path]) -> list[Method]:
    """The optimisation and every kind of network, each with the first checkpoint of its kind if there is one."""
    found: dict[str, Method] = {}
    for path in checkpoints:
        trained = load(path)
        network = trained.network
        if network.arguments.get("texture"):
            continue
        several = ADDED if "before" in trained.training else MANY
        kind = several if network.styles > 1 else {"ulyanov": ULYANOV, "fast": FAST}.get(network.name, JOHNSON)
        architecture = {"name": network.name, "arguments": dict(network.arguments)}
        found.setdefault(kind, Method(kind, architecture, trained, path.stem))
    return [Method(GATYS), *(found.get(kind, Method(kind, network)) for kind, network in UNTRAINED.items())]


def _described(method: Method) -> dict[str, Any]:
    """What does not depend on the size."""
    styles: int | None = None
    network, count = None, None
    if method.architecture:
        network = method.architecture["name"]
        made = ARCHITECTURES[network](**method.architecture["arguments"])
        styles, count = made.styles, parameters(made)
    return {
        "method": method.name,
        "network": network,
        "parameters": count,
        "styles": styles,
        "loss": _loss(method),
        "new_style": _new_style(method),
    }


def _loss(method: Method) -> dict[str, Any]:
    """The weighted loss on held-out photographs, as the training measured it; it depends on the painting."""
    if method.name == GATYS:
        return {"missing": "it falls with every iteration; the speed-up at equal loss compares it"}
    value = method.trained.metrics.get("held out total") if method.trained else None
    if method.trained is None or value is None:
        return {"missing": "no trained checkpoint of this kind was given"}
    size = method.trained.training.get("crop")
    return {"value": value, "size": size, "photos": len(sample_photographs()), "of": method.source}


def _new_style(method: Method) -> dict[str, Any]:
    """Seconds until a new painting can be painted with, from the training's own record."""
    if method.name == GATYS:
        return {"seconds": 0.0, "from": "nothing is trained"}
    seconds = method.trained.training.get("seconds") if method.trained else None
    if method.trained is None:
        return {"missing": "no trained checkpoint of this kind was given"}
    if seconds is None:
        return {"missing": f"{method.source} does not say how long its training took"}
    learned = len(method.trained.training.get("style_images", ())) or 1
    device = method.trained.training.get("device", "CPU")  # a checkpoint of before this was noted is of a CPU
    begun = f", which began with {start}" if (start := method.trained.training.get("from")) else ""
    source = f"{method.source}'s {'last ' if begun else ''}training of {learned} style(s), {device}{begun}"
    return {"seconds": seconds / learned, "from": source}


def _at_size(
    found: Sequence[Method], size: int, vgg: Path | None, effort: Effort, ceiling: Roofline, device: Device
) -> list[dict[str, Any]]:
    """Each method in a process of its own, in turns."""
    with ExitStack() as stack:
        painters = {one.name: stack.enter_context(_process(one.architecture, size, vgg, device)) for one in found}
        works = {name: partial(ask, "paint") for name, ask in painters.items()}
        taken: dict[str, list[float]] = {name: [] for name in works}
        for number in range(1 + effort.rounds):
            for name, work in works.items():
                seconds = work()  # by the process's own clock
                if number:  # the first picture of a process is another figure
                    taken[name].append(seconds)
        peaks = {name: ask("peak") for name, ask in painters.items()}
    rows = []
    for method in found:
        summary = summarize(taken[method.name])
        iterations = ITERATIONS if method.architecture is None else 1
        about = {"method": method.name, "size": size, "trained": method.trained is not None, "iterations": iterations}
        costs = {"picture_seconds": iterations * summary.median / 1000.0, "peak_mib": peaks[method.name]}
        rows.append({**about, **asdict(summary), **costs, **_shares(method, size, vgg, ceiling, summary.median)})
    return rows


def _shares(method: Method, size: int, vgg: Path | None, ceiling: Roofline, median: float) -> dict[str, float]:
    """Of the machine's rates; of the optimisation only the arithmetic is counted."""
    if method.architecture is None:
        gflop = gatys.gflop(_settings(size), vgg16_weights(vgg), size)
        assert ceiling.gflops is not None  # PyTorch uses the device, and so its rates are known
        return {"gflop": gflop, "share_of_matrix_rate": gflop / (median / 1000.0) / ceiling.gflops}
    network = ARCHITECTURES[method.architecture["name"]](**method.architecture["arguments"])
    return ceiling.shares(network_workload(frozen(network), size), median)


def _settings(size: int) -> OptimizationSettings:
    return replace(PRESETS["johnson2016-baseline"], size=size, iterations=ITERATIONS)


@contextmanager
def _process(
    architecture: dict[str, Any] | None, size: int, vgg: Path | None, device: Device
) -> Iterator[Callable[[str], float]]:
    """A process that paints when asked for `paint` (seconds), and knows its memory's `peak` (MiB)."""
    spawning = multiprocessing.get_context("spawn")
    here, there = spawning.Pipe()
    process = spawning.Process(target=_serve, args=(architecture, size, vgg, device, there), daemon=True)
    process.start()
    there.close()

    def ask(what: str) -> float:
        try:
            here.send(what)
            answer: float = here.recv()
        except (EOFError, BrokenPipeError) as error:
            raise MethodError("a method's process ended: is there enough memory?") from error
        return answer

    try:
        yield ask
    finally:
        process.terminate()
        process.join()


def _serve(
    architecture: dict[str, Any] | None, size: int, vgg: Path | None, device: Device, orders: Connection
) -> None:
    where = torch_device(device)
    paint = _optimisation(size, vgg, where) if architecture is None else _network(architecture, size, where)
    while order := orders.recv():
        orders.send(_peak_mib(where) if order == "peak" else timed(paint))


def _network(architecture: dict[str, Any], size: int, where: torch.device) -> Callable[[], object]:
    network = frozen(ARCHITECTURES[architecture["name"]](**architecture["arguments"]))
    return partial(pytorch_eager(network, "GPU" if where.type == "cuda" else "CPU"), sample_photograph(size, size))


def _optimisation(size: int, vgg: Path | None, where: torch.device) -> Callable[[], object]:
    """An iteration, with the memory settings of the commands; a photograph stands in for the painting."""
    keep_freed_memory()
    content = to_tensor(ImageData(sample_photograph(size, size)))
    style = to_tensor(open_image(sample_photographs()[0]))
    run = ImageOptimization(content, [style], _settings(size), vgg16_weights(vgg), device=where)

    def iterate() -> None:
        run.step(lambda iteration: None)
        if where.type == "cuda":
            torch.cuda.synchronize(where)

    return iterate


def _peak_mib(where: torch.device) -> float:
    """Of this process alone, on a GPU of what it had there: what `getrusage` tells goes back to who started it."""
    if where.type == "cuda":
        return torch.cuda.max_memory_reserved(where) / 2**20
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024.0
    return float("nan")
