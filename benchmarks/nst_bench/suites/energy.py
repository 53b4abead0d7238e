"""Energy an image on a GPU: the network in this process, served, and the optimisation that it replaces.

The card counts its own energy, all of the card's and nothing of the processor's, and the count moves some ten times a
second: a block takes seconds. What the card draws while it does nothing is *not* subtracted, since it is paid for
too; it stands beside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nst_bench.engines.bare import BareModel
from nst_bench.machine.cuda import torch_device
from nst_bench.machine.description import document_header
from nst_bench.machine.nvml import joules
from nst_bench.measure import timed
from nst_bench.photographs import sample_photograph
from nst_bench.served.callers import start_callers
from nst_bench.served.server import ModelServer
from nst_bench.suites.quality import baseline
from nst_core.devices import Device, Gpu
from nst_core.errors import InputError
from nst_core.images import fit, open_image, sample_photographs
from nst_trainer.checkpoint import Checkpoint
from nst_trainer.images import to_tensor
from nst_trainer.optimization.gatys import ImageOptimization
from nst_trainer.weights import vgg16_weights

SCHEMA = "nst-bench-energy/1"

NETWORK, ALONE, MANY, GATYS = "the network, without a server", "served, 1 caller", "served, {} callers", "Gatys"
ITERATIONS = 500
"""Of the optimisation, for an image; they are scaled from those of a block."""


@dataclass(frozen=True)
class Effort:
    """Seconds of a block, sides of the images in pixels, callers at once."""

    seconds: float = 4.0
    sizes: tuple[int, ...] = (512,)
    callers: int = 8

    def scaled(self, share: float) -> Effort:
        """For a share of the time."""
        return replace(self, seconds=max(2.0, share * self.seconds))


FULL = Effort()


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
        """`work` does so many pieces, and says how many they were; about `seconds` of it, after a short one."""
        tried = 8
        work(tried)  # the first ones of a shape are other figures
        taken = timed(partial(work, tried))
        used, begun = joules(self._gpu), time.monotonic()
        pieces = work(max(tried, round(tried * seconds / taken)))
        return Block(pieces, time.monotonic() - begun, joules(self._gpu) - used)


def measure(
    checkpoint: Checkpoint,
    served: ModelServer,
    device: Device,
    *,
    vgg: Path | None = None,
    effort: Effort = FULL,
    on_progress: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """Energy an image of the network, of `served`, and of the optimisation with the settings of its training.

    Rows have joules an image, and the mean power. Raises `InputError` without a GPU, `EnergyError` where it does not
    count its energy.
    """
    if device.gpu is None:
        raise InputError(device.reason)
    document = document_header(SCHEMA)
    meter = Meter(device.gpu, effort.seconds / 2)
    rows = []
    for size in effort.sizes:
        for what, images, work in _works(checkpoint, served, device, size, vgg, effort.callers):
            with work as run:
                row = _row(what, size, images, meter.block(run, effort.seconds))
            rows.append(row)
            on_progress(f"{size} x {size}, {what}: {row['joules']:.3g} J an image, {row['watts']:.0f} W")
    for row in rows:
        network = next(one for one in rows if (one["what"], one["size"]) == (NETWORK, row["size"]))
        row["ratio"] = row["joules"] / network["joules"]
    return {
        **document,
        "model": {"name": served.model, "precision": served.exported.precision},
        "iterations": ITERATIONS,
        "idle_watts": meter.idle_watts,
        "idle_subtracted": False,
        "rows": rows,
    }


def _works(
    checkpoint: Checkpoint, served: ModelServer, device: Device, size: int, vgg: Path | None, callers: int
) -> Iterator[tuple[str, float, Any]]:
    """What is measured at a size: its name, the images that a piece of it makes, and a context with the work."""
    yield NETWORK, 1.0, _network(served, size)
    yield ALONE, 1.0, _called(served, size, 1)
    yield MANY.format(callers), 1.0, _called(served, size, callers)
    yield f"{GATYS}, {ITERATIONS} iterations", 1.0 / ITERATIONS, _optimisation(checkpoint, device, size, vgg)


@contextmanager
def _network(served: ModelServer, size: int) -> Iterator[Callable[[int], int]]:
    """The bare sessions, images in main memory."""
    bare, pixels = BareModel(served.exported.folder), sample_photograph(size, size)

    def work(pieces: int) -> int:
        bare.seconds_for(pixels, pieces)
        return pieces

    yield work


@contextmanager
def _called(served: ModelServer, size: int, count: int) -> Iterator[Callable[[int], int]]:
    """Callers by shared memory, as they are on one host; a block begins with the fifth of a second that they wait."""
    pixels = sample_photograph(size, size)
    with start_callers(count, served.endpoints.grpc, served.style, shared_memory=True) as callers:
        yield lambda pieces: len(callers.closed_loop(count, max(pieces, count), pixels))


@contextmanager
def _optimisation(
    checkpoint: Checkpoint, device: Device, size: int, vgg: Path | None
) -> Iterator[Callable[[int], int]]:
    """Iterations of one run that never ends; a photograph stands in the painting's place, as it costs the same."""
    style = to_tensor(open_image(sample_photographs()[0]))
    content = to_tensor(fit(open_image(sample_photographs()[-1]), size, size))
    where = torch_device(device)
    settings = baseline(checkpoint, size, 10**9)
    run = ImageOptimization(content, [style], settings, vgg16_weights(vgg), device=where)

    def work(pieces: int) -> int:
        for _ in range(pieces):
            run.step(lambda iteration: None)
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        return pieces

    yield work


def _row(what: str, size: int, images: float, block: Block) -> dict[str, Any]:
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
