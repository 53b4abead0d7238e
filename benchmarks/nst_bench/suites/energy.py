"""Energy per image on a GPU: the network in-process, served, and the optimisation that it replaces.

The GPU's own counter covers the whole card and not the processor. It is updated about ten times per second, so a block
takes seconds. The idle power is *not* subtracted, since it is paid for as well; it is reported separately.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from nst_bench import options
from nst_bench.drawing.tables import columns, table
from nst_bench.drawing.words import shown
from nst_bench.engines.baseline import Baseline
from nst_bench.equal_loss import johnson_baseline
from nst_bench.machine.gpu import joules, torch_device
from nst_bench.measure import timed
from nst_bench.photographs import content_tensor, sample_photograph, style_tensor
from nst_bench.served.callers import start_callers
from nst_bench.served.resources import served_checkpoint
from nst_bench.served.server import ModelServer
from nst_bench.suite import Context, Cost, Document, Effort, Suite
from nst_core.devices import Gpu
from nst_core.errors import InputError
from nst_trainer.checkpoint import Checkpoint
from nst_trainer.optimization.gatys import ImageOptimization
from nst_trainer.weights import vgg16_weights

NETWORK, ALONE, MANY, GATYS = "the network, without a server", "served, 1 caller", "served, {} callers", "Gatys"
FEWEST_PIECES = 8
"""Minimum pieces of work per block; at least as many as clients."""

ITERATIONS = 500
"""Iterations of the optimisation per image; the energy is extrapolated from those of a block."""


@dataclass(frozen=True)
class EnergyEffort(Effort):
    """Seconds per block, sides of the images in pixels, concurrent clients."""

    seconds: float = 4.0
    sizes: tuple[int, ...] = (512,)
    callers: int = 8

    takes_time = ("seconds",)


class Meter:
    """The energy counter of a GPU, and its idle power (W)."""

    def __init__(self, gpu: Gpu, seconds: float) -> None:
        """Measure the idle power for some seconds. Raises `EnergyError` if the GPU does not count its energy."""
        self._gpu = gpu
        used, begun = joules(gpu), time.monotonic()
        time.sleep(seconds)
        self.idle_watts = (joules(gpu) - used) / (time.monotonic() - begun)

    def block(self, work: Callable[[int], object], seconds: float) -> dict[str, float]:
        """Run `work(pieces)` for about `seconds`; return the pieces, the seconds and the mean power (W)."""
        work(FEWEST_PIECES)  # warm-up
        taken = timed(partial(work, FEWEST_PIECES))
        pieces = max(FEWEST_PIECES, round(FEWEST_PIECES * seconds / taken))
        used, begun = joules(self._gpu), time.monotonic()
        work(pieces)
        took = time.monotonic() - begun
        return {"pieces": pieces, "seconds": took, "watts": (joules(self._gpu) - used) / took}


def check(context: Context[EnergyEffort], *, vgg: Path | None = None) -> None:
    """Raise `InputError` without a GPU."""
    _gpu(context)


def _gpu(context: Context[EnergyEffort]) -> Gpu:
    if context.device.gpu is None:
        raise InputError(f"energy is only measured on a GPU ({context.device.reason}); use --device gpu")
    return context.device.gpu


def measure(
    context: Context[EnergyEffort], checkpoint: Checkpoint, server: ModelServer, *, vgg: options.Vgg = None
) -> Document:
    """Measure a GPU's energy per image.

    Compares the network in-process, served, and 500 iterations of Gatys' optimisation. Takes about a minute.
    """
    effort = context.effort
    meter = Meter(_gpu(context), effort.seconds / 2)
    rows = []
    for size in effort.sizes:
        for what, images, work in _works(checkpoint, server, context, size, vgg):
            row = row_of(what, size, images, meter.block(work, effort.seconds))
            rows.append(row)
            used = f"{row['joules']:.3g} J per image, {row['watts']:.0f} W"
            context.on_progress(f"{size} x {size}, {shown(what)}: {used}")
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
) -> Iterator[tuple[str, float, Callable[[int], object]]]:
    """Yield what is measured at a size: its name, the images per piece, and a function that does some pieces.

    Clients use shared memory, as they run on the same host; they start a fifth of a second after they are asked to.
    """
    pixels, callers = sample_photograph(size, size), context.effort.callers
    yield NETWORK, 1.0, partial(Baseline(server.exported.folder).seconds_for, pixels)
    for what, count in ((ALONE, 1), (MANY.format(callers), callers)):
        with start_callers(count, server.endpoints.grpc, server.style, shared_memory=True) as running:
            yield what, 1.0, partial(running.closed_loop, count, pixels=pixels)
    device, weights = torch_device(context.device), vgg16_weights(vgg)
    # An endless run; a photograph stands in for the style image, as it does not affect the speed.
    settings = johnson_baseline(checkpoint, size, 10**9)
    run = ImageOptimization(content_tensor(size), [style_tensor()], settings, weights, device=device)

    def iterate(pieces: int) -> None:
        for _ in range(pieces):
            run.step(lambda iteration: None)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    yield f"{GATYS}, {ITERATIONS} iterations", 1.0 / ITERATIONS, iterate


def row_of(what: str, size: int, images: float, block: dict[str, float]) -> Document:
    """Return the row of a block, with joules per image; a piece makes `images` images."""
    made = images * block["pieces"]
    return {"what": what, "size": size, **block, "joules": block["watts"] * block["seconds"] / made}


def tables(document: Document) -> list[str]:
    """Render the energy per image."""
    an_image = columns(
        "size    | what   | joules per image | relative to in-process",
        "{size}² | {what} | {joules:digits}  | **{ratio:digits}**",
    )
    counted = columns("mean power, W | images or iterations | seconds", "{watts:.0f} | {pieces:,} | {seconds:.1f}")
    return [
        f"`{document['model']['name']}`.",
        "",
        "Energy of the whole GPU by its own counter (NVML), without the processor. The idle power of "
        f"{document['idle_watts']:.0f} W is included, not subtracted. Served images use shared memory; the "
        f"optimisation's {document['iterations']} iterations are extrapolated from those that were counted.",
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
