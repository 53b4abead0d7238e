"""How much faster the served network is than the optimisation that it replaces, on one device.

Table 1 of Johnson, Alahi and Fei-Fei 2016 with a server in the way: a request over gRPC, HTTP and shared memory,
the same model in this process, the same network in PyTorch, and an iteration of the optimisation
with the loss network, layers and weights of the network's own training. Cold start, the first
picture of a new shape and the steady state are three figures.

A fixed number of iterations flatters the network if its picture is worth fewer. The figure beside it is the speed-up
at equal loss: the iterations after which the optimisation's loss is the network's, found on real photographs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from nst_bench.engines.pytorch import pytorch_eager
from nst_bench.machine.cuda import torch_device
from nst_bench.machine.description import document_header
from nst_bench.measure import interleaved, summarize, timed
from nst_bench.photographs import sample_photograph
from nst_bench.served.exported import ExportedModel
from nst_bench.served.server import ModelServer, serve_model
from nst_bench.suites.latency import about
from nst_bench.suites.quality import baseline, network_losses, painter, painting_of
from nst_client import StyleClient
from nst_core.devices import Device
from nst_core.images import Pixels, fit, open_image, sample_photographs
from nst_server.installation.triton import Installation
from nst_trainer.checkpoint import Checkpoint
from nst_trainer.images import to_tensor
from nst_trainer.optimization.gatys import ImageOptimization, Iteration, optimize
from nst_trainer.optimization.settings import OptimizationSettings
from nst_trainer.vgg import Weights
from nst_trainer.weights import vgg16_weights

SCHEMA = "nst-bench-speedup/1"
ITERATIONS = (100, 300, 500)
"""Johnson et al.'s table 1."""

GATYS = "Gatys, one iteration"
SERVED = ("Triton, gRPC", "Triton, HTTP", "Triton, shared memory")
COMPARED = (SERVED[0], SERVED[2])
"""What the optimisation is divided by: a picture by the network's protocol, and as a client on the same host has it."""


@dataclass(frozen=True)
class Effort:
    """How long to measure: `blocks` times `rounds` requests of each engine and `iterations` of Gatys.

    At each of the sizes of `equal_loss` the optimisation runs down to the network's loss, on so many `photos`.
    """

    blocks: int
    rounds: int
    iterations: int
    equal_loss: tuple[int, ...] = ()
    photos: int = 1

    def ticks(self, sizes: int, engines: int) -> int:
        """Single measurements in all, for the progress."""
        return sizes * self.blocks * (engines * self.rounds + self.iterations + 1)

    def scaled(self, share: float) -> Effort:
        """For a share of the time: one photograph at equal loss, and less of everything else."""
        if share >= 1.0:
            return self
        least = {name: max(2, round(share * getattr(self, name))) for name in ("rounds", "iterations")}
        return replace(self, **least, photos=1)


SHORT = Effort(blocks=2, rounds=6, iterations=4, equal_loss=(256,))
FULL = Effort(blocks=4, rounds=12, iterations=6, equal_loss=(256, 512), photos=4)
CARD = Effort(blocks=3, rounds=60, iterations=50, equal_loss=(256, 512), photos=4)
"""On a GPU, where both take milliseconds."""

LONGEST = 100
"""Iterations after which the search for a network's loss is given up."""


@dataclass
class _Samples:
    """Seconds by phase for one engine at one size."""

    steady: list[float] = field(default_factory=list)
    first_of_shape: list[float] = field(default_factory=list)


def measure(
    checkpoint: Checkpoint,
    name: str,
    repository: Path,
    installation: Installation,
    device: Device,
    *,
    sizes: tuple[int, ...] = (256, 512),
    effort: Effort = FULL,
    vgg: Path | None = None,
    style: Path | None = None,
    on_progress: Callable[[], None] = lambda: None,
    keep: Callable[[dict[str, Any]], None] = lambda document: None,
) -> dict[str, Any]:
    """Measure model `name` of `repository`, which `nst-export` made of `checkpoint`; a document.

    Starts a Triton of its own on free ports of this machine, with this model alone, and ends it. `style` is the
    painting that it learned; without, there are no losses to compare. All run on `device`. `keep` gets the document
    after every size, first without the comparison at equal loss. Raises `InputError` when the repository lacks the
    model, or has it for another device, or PyTorch cannot use the GPU.
    """
    ExportedModel(repository / name).check_device(device)
    where = torch_device(device)
    document = {**document_header(SCHEMA), "model": about(checkpoint, name), "device": device.kind.upper()}
    figures: list[dict[str, Any]] = []
    equal_loss: list[dict[str, Any]] = []

    def all_of(done: tuple[int, ...]) -> dict[str, Any]:
        return {**document, "rows": figures, "speedup": _speedups(figures, done), "equal_loss": equal_loss}

    with ExitStack() as stack:
        server = stack.enter_context(serve_model(installation, repository, name))
        figures.append(_figure("Triton, from start to ready", None, "cold", [server.seconds]))
        engines = _engines(stack, checkpoint, server, figures)
        loaded: list[Weights] = []
        seconds = timed(lambda: loaded.append(vgg16_weights(vgg)))
        figures.append(_figure("Gatys, load the loss network's weights", None, "cold", [seconds]))
        for number, size in enumerate(sizes, 1):
            settings = baseline(checkpoint, size, effort.iterations + 1)
            samples = _at_size(
                size, engines, partial(_iterations, settings, loaded[0], where, on_progress), effort, on_progress
            )
            for engine, taken in samples.items():
                figures.append(_figure(engine, size, "steady", taken.steady))
                if taken.first_of_shape:
                    figures.append(_figure(engine, size, "first of a shape", taken.first_of_shape))
            keep(all_of(sizes[:number]))
    for size in sizes:
        equal_loss += _equal_loss(checkpoint, style, size, effort, loaded[0], figures, where)
        keep(all_of(sizes))
    return all_of(sizes)


Engine = Callable[[Pixels], object]


def _engines(
    stack: ExitStack,
    checkpoint: Checkpoint,
    server: ModelServer,
    figures: list[dict[str, Any]],
) -> dict[str, Engine]:
    """What paints `uint8 [H, W, 3]`, by name; the cold start of the one in this process is measured."""
    ends = server.endpoints
    urls = (ends.grpc, ends.http, ends.grpc, f"local:{server.repository}")
    clients = {
        engine: stack.enter_context(StyleClient(url, timeout=300.0, shared_memory=engine == SERVED[2]))
        for engine, url in zip((*SERVED, "in the process"), urls, strict=True)
    }
    small = sample_photograph(256, 256)
    style = server.model if checkpoint.network.styles == 1 else checkpoint.styles[0]
    seconds = timed(lambda: clients["in the process"].stylize(small, style))
    figures.append(_figure("in the process, load and first picture", None, "cold", [seconds]))
    return {
        **{engine: partial(client.stylize, style=style) for engine, client in clients.items()},
        "PyTorch": pytorch_eager(checkpoint.network, server.exported.device),
    }


def _at_size(
    size: int,
    engines: dict[str, Engine],
    iterations: Callable[[torch.Tensor], tuple[float, list[float]]],
    effort: Effort,
    on_progress: Callable[[], None],
) -> dict[str, _Samples]:
    """Steady state at `size`^2, blocks of requests and of iterations in turn; first pictures of other shapes."""
    samples = {engine: _Samples() for engine in (*engines, GATYS)}
    picture = sample_photograph(size, size)
    for position, (engine, paint) in enumerate(engines.items()):
        for narrower in (12, 20, 28):  # one more for each engine, since one server is two of them
            shape = sample_photograph(size, size - narrower - position)
            samples[engine].first_of_shape.append(timed(partial(paint, shape)))
        paint(picture)
    content = torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous() / 255.0
    for _ in range(effort.blocks):
        works = {engine: partial(paint, picture) for engine, paint in engines.items()}
        for engine, seconds in interleaved(works, effort.rounds, on_progress=on_progress).items():
            samples[engine].steady += seconds
        first, steady = iterations(content)
        samples[GATYS].first_of_shape.append(first)
        samples[GATYS].steady += steady
    return samples


def _iterations(
    settings: OptimizationSettings,
    weights: Weights,
    device: torch.device,
    on_progress: Callable[[], None],
    content: torch.Tensor,
) -> tuple[float, list[float]]:
    """Seconds of the first iteration, and of each later one.

    A photograph stands in the painting's place, which a checkpoint does not hold: an iteration
    costs the same whatever the picture is, and losses are not compared here.
    """
    stamps: list[float] = []

    def stamp(iteration: Iteration) -> None:
        stamps.append(iteration.seconds)
        on_progress()

    style = to_tensor(open_image(sample_photographs()[0]))
    optimize(content, [style], settings, weights=weights, on_iteration=stamp, device=device)
    return stamps[0], [after - before for before, after in pairwise(stamps)]


def _figure(engine: str, size: int | None, phase: str, seconds: list[float]) -> dict[str, Any]:
    return {"engine": engine, "size": size, "phase": phase, "unit": "ms", **asdict(summarize(seconds))}


def _speedups(figures: list[dict[str, Any]], sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Median iteration x number of iterations over the median request, for each size and each way of `COMPARED`."""
    steady = {(one["engine"], one["size"]): one["median"] for one in figures if one["phase"] == "steady"}
    return [
        {
            "size": size,
            "iterations": iterations,
            "gatys_seconds": steady[GATYS, size] * iterations / 1000.0,
            "served": way,
            "served_ms": steady[way, size],
            "ratio": steady[GATYS, size] * iterations / steady[way, size],
        }
        for way in COMPARED
        for size in sizes
        for iterations in ITERATIONS
    ]


def _equal_loss(
    checkpoint: Checkpoint,
    style: Path | None,
    size: int,
    effort: Effort,
    weights: Weights,
    figures: list[dict[str, Any]],
    device: torch.device,
) -> list[dict[str, Any]]:
    """On each photograph the first iteration whose loss is the network's or lower, times the median iteration.

    The loss is that of the optimisation's picture as it is, which falls sooner than that of values cut to [0, 1].
    """
    if style is None:
        learned = ", ".join(map(str, checkpoint.training.get("style_images", ()))) or "the painting"
        return [{"size": size, "missing": f"{learned} is not at hand to compare losses: --style"}]
    if size not in effort.equal_loss:
        return [{"size": size, "missing": "the optimisation was not run at this size"}]
    steady = {(one["engine"], one["size"]): one["median"] for one in figures if one["phase"] == "steady"}
    paint = painter(checkpoint, style.stem)
    painting = painting_of(checkpoint, style)
    rows: list[dict[str, Any]] = []
    for photo in sample_photographs()[: effort.photos]:
        content = to_tensor(fit(open_image(photo), size, size))
        run = ImageOptimization(
            content, [painting], baseline(checkpoint, size, LONGEST, painting), weights, device=device
        )
        loss = network_losses(run, paint)["loss"]
        seen: list[Iteration] = []
        while run.step(seen.append) and seen[-1].total > loss:
            pass
        row: dict[str, Any] = {"size": size, "photo": photo.name}
        if seen[-1].total > loss:
            rows.append({**row, "missing": f"after {LONGEST} iterations the optimisation's loss is above {loss:.3g}"})
            continue
        needed = steady[GATYS, size] * len(seen)
        row |= {"loss": loss, "iteration": len(seen), "curve": [one.total for one in seen]}
        rows.append({**row, "gatys_seconds": needed / 1000.0, **_against(needed, steady, size)})
    return rows


def _against(needed: float, steady: dict[tuple[str, int], float], size: int) -> dict[str, float]:
    """The milliseconds `needed` over those of a picture by each way of `COMPARED`."""
    by_network, by_memory = (steady[way, size] for way in COMPARED)
    return {
        "served_ms": by_network,
        "ratio": needed / by_network,
        "shared_memory_ms": by_memory,
        "shared_memory_ratio": needed / by_memory,
    }
