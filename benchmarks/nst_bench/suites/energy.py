"""Energy an image on a GPU: the network in this process, served, and the optimisation that it replaces.

The card counts its own energy, all of the card's and nothing of the processor's, and the count moves some ten times a
second: a block takes seconds. What the card draws while it does nothing is *not* subtracted, since it is paid for
too; it stands beside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nst_bench import options
from nst_bench.comparison import baseline
from nst_bench.drawing.tables import columns, table
from nst_bench.engines.baseline import Baseline
from nst_bench.machine.gpu import joules, torch_device
from nst_bench.measure import timed
from nst_bench.photographs import content_tensor, sample_photograph, style_tensor
from nst_bench.served.callers import start_callers
from nst_bench.served.resources import served_checkpoint
from nst_bench.served.server import ModelServer
from nst_bench.suite import Context, Cost, Document, Effort, Suite
from nst_core.devices import Device, Gpu
from nst_core.errors import InputError
from nst_trainer.checkpoint import Checkpoint
from nst_trainer.optimization.gatys import ImageOptimization
from nst_trainer.weights import vgg16_weights

NETWORK, ALONE, MANY, GATYS = "the network, without a server", "served, 1 caller", "served, {} callers", "Gatys"
ITERATIONS = 500
"""Of the optimisation, for an image; they are scaled from those of a block."""


@dataclass(frozen=True)
class EnergyEffort(Effort):
    """Seconds of a block, sides of the images in pixels, callers at once."""

    seconds: float = 4.0
    sizes: tuple[int, ...] = (512,)
    callers: int = 8

    takes_time = ("seconds",)


@dataclass(frozen=True)
class Block:
    """`pieces` of work in so many seconds, and what the card used meanwhile."""

    pieces: int
    seconds: float
    joules: float


class Meter:
    """The energy counter of a GPU, with the power (W) that it draws while it does nothing."""

    def __init__(self, gpu: Gpu, seconds: float) -> None:
        """Look for some seconds at an idle card. Raises `EnergyError` where nobody counts its energy."""
        self._gpu = gpu
        used, begun = joules(gpu), time.monotonic()
        time.sleep(seconds)
        self.idle_watts = (joules(gpu) - used) / (time.monotonic() - begun)

    def block(self, work: Callable[[int], int], seconds: float) -> Block:
        """`work` does so many pieces, and says how many they were; about `seconds` of it, after a short block."""
        tried = 8
        work(tried)  # the first ones of a shape are other figures
        taken = timed(partial(work, tried))
        used, begun = joules(self._gpu), time.monotonic()
        pieces = work(max(tried, round(tried * seconds / taken)))
        return Block(pieces, time.monotonic() - begun, joules(self._gpu) - used)


def check(context: Context[EnergyEffort], *, vgg: Path | None = None) -> None:
    """Raises `InputError` without a GPU."""
    _gpu(context)


def _gpu(context: Context[EnergyEffort]) -> Gpu:
    if context.device.gpu is None:
        raise InputError(f"energy is measured on a GPU alone: {context.device.reason}")
    return context.device.gpu


def measure(
    context: Context[EnergyEffort], checkpoint: Checkpoint, server: ModelServer, *, vgg: options.Vgg = None
) -> Document:
    """Measure a GPU's energy an image: the network, served, and 500 iterations of the optimisation.

    Takes a minute.
    """
    effort = context.effort
    meter = Meter(_gpu(context), effort.seconds / 2)
    rows = []
    for size in effort.sizes:
        for what, images, work in _works(checkpoint, server, context, size, vgg):
            with work as run:
                row = row_of(what, size, images, meter.block(run, effort.seconds))
            rows.append(row)
            used = f"{row['joules']:.3g} J an image, {row['watts']:.0f} W"
            context.on_progress(f"{size} x {size}, {what}: {used}")
    for row in rows:
        network = next(other for other in rows if (other["what"], other["size"]) == (NETWORK, row["size"]))
        row["ratio"] = row["joules"] / network["joules"]
    return {
        "model": {"name": server.model, "precision": server.exported.precision},
        "iterations": ITERATIONS,
        "idle_watts": meter.idle_watts,
        "idle_subtracted": False,
        "rows": rows,
    }


def _works(
    checkpoint: Checkpoint, server: ModelServer, context: Context[EnergyEffort], size: int, vgg: Path | None
) -> Iterator[tuple[str, float, Any]]:
    """What is measured at a size: its name, the images that a piece of it makes, and a context with the work."""
    callers = context.effort.callers
    yield NETWORK, 1.0, _network(server, size)
    yield ALONE, 1.0, _called(server, size, 1)
    yield MANY.format(callers), 1.0, _called(server, size, callers)
    yield f"{GATYS}, {ITERATIONS} iterations", 1.0 / ITERATIONS, _optimisation(checkpoint, context.device, size, vgg)


@contextmanager
def _network(server: ModelServer, size: int) -> Iterator[Callable[[int], int]]:
    """The bare sessions, images in main memory."""
    bare, pixels = Baseline(server.exported.folder), sample_photograph(size, size)

    def work(pieces: int) -> int:
        bare.seconds_for(pixels, pieces)
        return pieces

    yield work


@contextmanager
def _called(server: ModelServer, size: int, count: int) -> Iterator[Callable[[int], int]]:
    """Callers by shared memory, as they are on one host; a block begins with the fifth of a second that they wait."""
    pixels = sample_photograph(size, size)
    with start_callers(count, server.endpoints.grpc, server.style, shared_memory=True) as callers:
        yield lambda pieces: len(callers.closed_loop(count, max(pieces, count), pixels))


@contextmanager
def _optimisation(
    checkpoint: Checkpoint, device: Device, size: int, vgg: Path | None
) -> Iterator[Callable[[int], int]]:
    """Iterations of one run that never ends; a photograph stands in for the style image, as it costs the same."""
    where = torch_device(device)
    settings = baseline(checkpoint, size, 10**9)
    run = ImageOptimization(content_tensor(size), [style_tensor()], settings, vgg16_weights(vgg), device=where)

    def work(pieces: int) -> int:
        for _ in range(pieces):
            run.step(lambda iteration: None)
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        return pieces

    yield work


def row_of(what: str, size: int, images: float, block: Block) -> Document:
    """Joules an image, of a block in which a piece makes so many of them."""
    made = images * block.pieces
    return {
        "what": what,
        "size": size,
        "pieces": block.pieces,
        "seconds": block.seconds,
        "watts": block.joules / block.seconds,
        "joules": block.joules / made,
    }


def tables(document: Document) -> list[str]:
    """Joules an image."""
    an_image = columns(
        "size    | what   | joules an image | times the network's",
        "{size}² | {what} | {joules:digits} | **{ratio:digits}**",
    )
    counted = columns("mean power, W | counted over | seconds", "{watts:.0f} | {pieces:,} | {seconds:.1f}")
    return [
        f"`{document['model']['name']}`.",
        "",
        "Energy of the whole card by its own counter (NVML), without the processor's. The "
        f"{document['idle_watts']:.0f} W that it draws while it does nothing are in it, not subtracted. Served images "
        f"go by shared memory; the optimisation's {document['iterations']} iterations are scaled from those that were "
        "counted.",
        "",
        *table(document["rows"], an_image | counted, left=2),
    ]


SUITE = Suite(
    name="energy",
    title="Energy",
    resources=served_checkpoint,
    check=check,
    measure=measure,
    tables=tables,
    effort=EnergyEffort(),
    on_cpu={"default": Cost(0, EnergyEffort()), "full": Cost(0, EnergyEffort())},
    on_gpu={"default": Cost(40, EnergyEffort()), "full": Cost(40, EnergyEffort())},
    rank=50,
)
