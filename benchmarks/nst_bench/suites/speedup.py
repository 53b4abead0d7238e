"""The speed-up of the served network over the optimisation that it replaces, on the same device.

This is table 1 of Johnson, Alahi and Fei-Fei 2016 with a server: a request over gRPC, HTTP and shared memory, the same
model in-process, the same network in PyTorch, and an iteration of the optimisation with the loss network, layers and
weights of the network's own training. Cold start, first request of a shape and steady state are three figures.

A fixed number of iterations favours the network if its image is equivalent to fewer. Therefore the speed-up at equal
loss is measured as well: the iterations after which the optimisation's loss is the network's, on real photographs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from nst_bench import options
from nst_bench.drawing.speedup import GATYS, ITERATIONS, plot_loss, plot_times, tables
from nst_bench.engines.pytorch import pytorch_eager
from nst_bench.equal_loss import Comparison, johnson_baseline, losses_until
from nst_bench.machine.gpu import torch_device
from nst_bench.measure import interleaved, summarize, timed
from nst_bench.photographs import sample_photograph, style_tensor
from nst_bench.served.resources import describe_network, served_checkpoint
from nst_bench.served.server import ModelServer
from nst_bench.suite import Context, Cost, Document, Effort, Suite
from nst_core.images import Pixels, sample_photographs
from nst_trainer.checkpoint import Checkpoint
from nst_trainer.optimization.gatys import Iteration, optimize
from nst_trainer.optimization.settings import OptimizationSettings
from nst_trainer.vgg import Weights
from nst_trainer.weights import vgg16_weights

SERVED = ("Triton, gRPC", "Triton, HTTP", "Triton, shared memory")
COMPARED = (SERVED[0], SERVED[2])
"""What the optimisation is compared with: a request over the network, and one by shared memory on the same host."""

STEADY, FIRST = "steady", "first of a shape"

LONGEST = 100
"""Maximum iterations of the search for the network's loss."""


@dataclass(frozen=True)
class SpeedupEffort(Effort):
    """At each of `sizes`, `blocks` times: `rounds` requests per engine and `iterations` of the optimisation.

    At each size in `equal_loss`, the optimisation runs down to the network's loss on `photos` photographs.
    """

    blocks: int
    rounds: int
    iterations: int
    equal_loss: tuple[int, ...] = ()
    photos: int = 1
    sizes: tuple[int, ...] = (256, 512, 1024)

    takes_time = ("rounds", "iterations")

    def scaled(self, share: float) -> SpeedupEffort:
        """Return the effort for a share of the time, with one photograph at equal loss."""
        return replace(super().scaled(share), photos=1)


def measure(
    context: Context[SpeedupEffort],
    checkpoint: Checkpoint,
    server: ModelServer,
    *,
    style: options.StyleImage = None,
    vgg: options.Vgg = None,
) -> Document:
    """Measure the speed-up over Gatys' optimisation.

    Repeats table 1 of Johnson et al. 2016 on this machine: 100, 300 and 500 iterations, and, with --style, the
    iterations to the network's loss. Takes about four minutes, with --full fifteen.
    """
    device, effort = torch_device(context.device), context.effort
    model, kind = describe_network(checkpoint, server.model), context.device.kind.upper()
    document = {"model": model, "device": kind}
    figures = [row_of("Triton, from start to ready", None, "cold", [server.seconds])]
    equal_loss: list[Document] = []

    def all_of(done: tuple[int, ...]) -> Document:
        return {**document, "rows": figures, "speedup": speedups(figures, done), "equal_loss": equal_loss}

    with ExitStack() as stack:
        engines = _engines(stack, checkpoint, server, figures)
        begun = time.perf_counter()
        weights = vgg16_weights(vgg)
        loading = [time.perf_counter() - begun]
        figures.append(row_of("Gatys, load the loss network's weights", None, "cold", loading))
        for number, size in enumerate(effort.sizes, 1):
            settings = johnson_baseline(checkpoint, size, effort.iterations + 1)
            iterations = partial(_iterations, settings, weights, device)
            for (engine, phase), taken in _at_size(size, engines, iterations, context).items():
                figures.append(row_of(engine, size, phase, taken))
            context.keep(all_of(effort.sizes[:number]))
    for size in effort.sizes:
        equal_loss += at_equal_loss(checkpoint, style, size, effort, weights, figures, device)
        context.on_progress(f"{size} x {size}: compared at equal loss")
        context.keep(all_of(effort.sizes))
    return all_of(effort.sizes)


Engine = Callable[[Pixels], object]


def _engines(
    stack: ExitStack, checkpoint: Checkpoint, server: ModelServer, figures: list[Document]
) -> dict[str, Engine]:
    """Return functions that stylize `uint8 [H, W, 3]`, by name; measures the in-process cold start."""
    ways = server.ways(stack)
    seconds = timed(partial(ways["local"], sample_photograph(256, 256)))
    figures.append(row_of("in the process, load and first image", None, "cold", [seconds]))
    return {
        **{engine: ways[engine.removeprefix("Triton, ")] for engine in SERVED},
        "in the process": ways["local"],
        "PyTorch": pytorch_eager(checkpoint.network, server.exported.device),
    }


def _at_size(
    size: int,
    engines: dict[str, Engine],
    iterations: Callable[[torch.Tensor], tuple[float, list[float]]],
    context: Context[SpeedupEffort],
) -> dict[tuple[str, str], list[float]]:
    """Return seconds by engine and phase at `size`^2: first requests of shapes, then all in turns."""
    samples = {(engine, phase): list[float]() for engine in (*engines, GATYS) for phase in (STEADY, FIRST)}
    image = sample_photograph(size, size)
    for position, (engine, stylize) in enumerate(engines.items()):
        for narrower in (12, 20, 28):  # other shapes for each engine, since several share one server
            shape = sample_photograph(size, size - narrower - position)
            samples[engine, FIRST].append(timed(partial(stylize, shape)))
        stylize(image)
    content = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous() / 255.0
    for block in range(1, context.effort.blocks + 1):
        works = {engine: partial(stylize, image) for engine, stylize in engines.items()}
        for engine, seconds in interleaved(works, context.effort.rounds).items():
            samples[engine, STEADY] += seconds
        first, steady = iterations(content)
        samples[GATYS, FIRST].append(first)
        samples[GATYS, STEADY] += steady
        context.on_progress(f"{size} x {size}: block {block} of {context.effort.blocks}")
    return samples


def _iterations(
    settings: OptimizationSettings, weights: Weights, device: torch.device, content: torch.Tensor
) -> tuple[float, list[float]]:
    """Return the seconds of the first iteration, and of each later one.

    A photograph stands in for the style image, which a checkpoint does not contain: the time of an iteration does not
    depend on the image, and losses are not compared here.
    """
    seen: list[Iteration] = []
    optimize(content, [style_tensor()], settings, weights=weights, on_iteration=seen.append, device=device)
    return seen[0].seconds, [after.seconds - before.seconds for before, after in pairwise(seen)]


def row_of(engine: str, size: int | None, phase: str, seconds: list[float]) -> Document:
    """Return the row of an engine's times."""
    return {"engine": engine, "size": size, "phase": phase, "unit": "ms", **asdict(summarize(seconds))}


def speedups(figures: list[Document], sizes: tuple[int, ...]) -> list[Document]:
    """Return median iteration x iterations / median request, for each size and each way of `COMPARED`."""
    steady = _steady(figures)
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


def _steady(figures: list[Document]) -> dict[tuple[str, int], float]:
    """Return the medians in the steady state, by engine and size."""
    return {(row["engine"], row["size"]): row["median"] for row in figures if row["phase"] == "steady"}


def at_equal_loss(
    checkpoint: Checkpoint,
    style: Path | None,
    size: int,
    effort: SpeedupEffort,
    weights: Weights,
    figures: list[Document],
    device: torch.device,
) -> list[Document]:
    """Return rows of the speed-up at equal loss: the first iteration at the network's loss or below, per photograph."""
    if style is None:
        learned = ", ".join(map(str, checkpoint.training.get("style_images", ()))) or "the style image"
        return [{"size": size, "missing": f"needs the style image to compare losses; give {learned} with --style"}]
    if size not in effort.equal_loss:
        return [{"size": size, "missing": "equal loss is not measured at this size"}]
    steady, comparison = _steady(figures), Comparison(checkpoint, style)
    rows: list[Document] = []
    for photo in sample_photographs()[: effort.photos]:
        run = comparison.optimization(photo, size, LONGEST, weights, device)
        loss = comparison.losses(run)["loss"]
        curve = list(losses_until(run, loss))
        row: Document = {"size": size, "photo": photo.name}
        if curve[-1] > loss:
            rows.append(
                {**row, "missing": f"the optimisation's loss is still above {loss:.3g} after {LONGEST} iterations"}
            )
            continue
        needed = steady[GATYS, size] * len(curve)
        row |= {"loss": loss, "iteration": len(curve), "curve": curve, "gatys_seconds": needed / 1000.0}
        by_network, by_memory = (steady[way, size] for way in COMPARED)
        row |= {"served_ms": by_network, "ratio": needed / by_network}
        rows.append(row | {"shared_memory_ms": by_memory, "shared_memory_ratio": needed / by_memory})
    return rows


SHORT = SpeedupEffort(blocks=2, rounds=6, iterations=4, equal_loss=(256,))
DEFAULT = SpeedupEffort(blocks=3, rounds=8, iterations=5, equal_loss=(256, 512), sizes=(256, 512))
FULL = SpeedupEffort(blocks=4, rounds=12, iterations=6, equal_loss=(256, 512), photos=4)
GPU = SpeedupEffort(blocks=3, rounds=60, iterations=50, equal_loss=(256, 512), photos=4)
"""On a GPU, a request and an iteration take milliseconds."""

SUITE = Suite(
    name="speedup",
    title="Speed-up over Gatys' optimisation",
    resources=served_checkpoint,
    measure=measure,
    tables=tables,
    plots=(plot_loss, plot_times),
    effort=SHORT,
    on_cpu={
        "short": Cost(40, replace(SHORT, equal_loss=(), sizes=(256, 512))),
        "default": Cost(130, DEFAULT),
        "full": Cost(520, FULL),
    },
    on_gpu={"short": Cost(60, GPU), **dict.fromkeys(("command", "default", "full"), Cost(70, GPU))},
    rank=10,
)
