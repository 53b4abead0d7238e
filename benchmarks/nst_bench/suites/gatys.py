"""The cost of Gatys' optimisation: an iteration by size against the machine's peak rate, and a result.

A user waits for the result, not for an iteration: the suite measures how long the preset `best` takes to the loss of
Johnson's baseline after some hundred iterations, both judged by the baseline's loss of the written image.
"""

from __future__ import annotations

import resource
import time
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import torch
import typer

from nst_bench import options
from nst_bench.drawing.tables import SUMMARY, columns, short, table
from nst_bench.machine.description import matrix_product_rate
from nst_bench.machine.gpu import torch_device
from nst_bench.measure import summarize
from nst_bench.suite import Context, Cost, Document, Effort, Suite
from nst_core.images import fit, open_image, sample_photographs
from nst_trainer.cuda_graph import WARM_UP_ITERATIONS
from nst_trainer.images import to_tensor
from nst_trainer.optimization.gatys import ImageOptimization, Iteration
from nst_trainer.optimization.settings import PRESETS, OptimizationSettings
from nst_trainer.vgg import BLOCKS, CONVOLUTIONS, LAYERS, Weights
from nst_trainer.weights import vgg16_weights

SIZES = (128, 256, 512, 1024)
EFFICIENCY = 0.75
"""Share of the matrix product's rate that convolutions are assumed to reach."""
WHOLE_ITERATIONS = 500
"""Iterations of a whole run, as in Johnson et al. 2016."""


@dataclass(frozen=True)
class GatysEffort(Effort):
    """The result to reach; the `SIZES` from `smallest` to `largest`, with `timed` iterations each."""

    size: Annotated[int, typer.Option(help="Side of the optimised image in pixels.", min=64)] = 256
    iterations: Annotated[
        int, typer.Option(help="Iterations of the baseline, whose final loss is the target.", min=1)
    ] = 300
    largest: Annotated[int, typer.Option(help="Largest side whose iterations are timed, in pixels.", min=128)] = 1024
    smallest: int = 128
    timed: int = 6


def gflop(settings: OptimizationSettings, weights: Weights, size: int) -> float:
    """Return the GFLOP of one iteration at `size`^2: the convolutions forward, and backward to the image."""
    deepest = max(LAYERS.index(name) for kind in ("content", "style") for name in settings.layers(kind))
    total = 0.0
    for block, names in enumerate(BLOCKS):
        for name in names:
            if name in CONVOLUTIONS and LAYERS.index(name) <= deepest:
                total += 2 * weights[f"{name}.weight"].numel() * (size >> block) ** 2
    return 2 * total / 1e9


def measure(
    context: Context[GatysEffort],
    *,
    style: Annotated[
        Path | None, typer.Option(help="Style image; by default a photograph that ships with nst.")
    ] = None,
    vgg: options.Vgg = None,
) -> Document:
    """Measure Gatys' optimisation: time, memory, result.

    Times an iteration by image size, and the preset best to the loss of Johnson's baseline.
    """
    # On a GPU the iterations run as a CUDA graph, ten times as many, and each size also has a whole run of
    # `WHOLE_ITERATIONS`, including the loss network, the targets and the graph's capture. Each iteration ends with its
    # losses on the CPU, so that the time is the device's.
    weights, device, effort = vgg16_weights(vgg), torch_device(context.device), context.effort
    on_gpu = device.type == "cuda"
    rows, whole = [], []
    for size in (size for size in SIZES if effort.smallest <= size <= effort.largest):
        rows.append(_iterations(weights, size, 10 * effort.timed if on_gpu else effort.timed, device))
        context.on_progress(f"{size} x {size}: {rows[-1]['median']:.{1 if on_gpu else 0}f} ms")
        if on_gpu:
            whole.append(_whole(weights, size, device))
            context.on_progress(f"{size} x {size}: {WHOLE_ITERATIONS} iterations in {whole[-1]['seconds']:.2f} s")
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "CPU",
        "iterations": rows,
        "whole": whole,
        "result": _result(weights, style, device, context),
    }


def _iterations(weights: Weights, size: int, iterations: int, device: torch.device) -> Document:
    """Measure an iteration at `size`^2, against the time that its arithmetic takes at the peak rate."""
    on_gpu = device.type == "cuda"
    skipped = WARM_UP_ITERATIONS + 1 if on_gpu else 1  # those before the graph, and the one that captures it
    settings = replace(PRESETS["johnson2016-baseline"], size=size, iterations=iterations + skipped)
    # On a GPU the optimisation's convolutions compute in TF32.
    rate = matrix_product_rate(8192, device=str(device), precision="high") if on_gpu else matrix_product_rate()
    content, style = _images(size, None)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    run = ImageOptimization(content, [style], settings, weights, device=device)
    stamps: list[float] = []
    while run.step(lambda iteration: stamps.append(iteration.seconds)):
        pass
    summary = summarize([after - before for before, after in pairwise(stamps[skipped - 1 :])])
    arithmetic = gflop(settings, weights, size)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "size": size,
        **asdict(summary),
        "precision": run.precision,
        "gflop": arithmetic,
        "matrix_product_gflops": rate,
        "ratio_to_bound": summary.median / (1000 * arithmetic / (rate * EFFICIENCY)),
        "peak_mib": torch.cuda.max_memory_reserved(device) / 2**20 if on_gpu else kilobytes / 1024,
    }


def _whole(weights: Weights, size: int, device: torch.device) -> Document:
    """Measure a whole run in a warm process, from the images on the CPU to the result on the CPU."""
    settings = replace(PRESETS["johnson2016-baseline"], size=size, iterations=WHOLE_ITERATIONS)
    content, style = _images(size, None)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    run = ImageOptimization(content, [style], settings, weights, device=device)
    losses: list[float] = []
    while run.step(lambda iteration: losses.append(iteration.total)):
        pass
    run.image().cpu()
    seconds = time.perf_counter() - started
    return {
        "size": size,
        "iterations": WHOLE_ITERATIONS,
        "seconds": seconds,
        "precision": run.precision,
        "lowest_loss": min(losses),
    }


def _images(size: int, style: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    photographs = sample_photographs()
    content = to_tensor(fit(open_image(photographs[-1]), size, size))
    return content, to_tensor(open_image(style or photographs[2]))


def _result(weights: Weights, style: Path | None, device: torch.device, context: Context[GatysEffort]) -> Document:
    """Measure the seconds of the baseline for some iterations, and of `best` to the same loss.

    Both are judged by the baseline's loss of the image as it would be written, clipped to [0, 1].
    """
    size, iterations = context.effort.size, context.effort.iterations
    content, style_image = _images(size, style)
    settings = replace(PRESETS["johnson2016-baseline"], size=size, iterations=iterations)
    baseline = ImageOptimization(content, [style_image], settings, weights, device=device)

    @torch.no_grad()
    def judged(run: ImageOptimization) -> float:
        return baseline.loss(run.image(), baseline.target).total.item()

    while baseline.step(lambda iteration: None):
        pass
    goal, needed = judged(baseline), baseline.seconds
    context.on_progress(f"{iterations} iterations of the baseline: loss {goal:.4g} after {needed:.1f} s")
    run = ImageOptimization(content, [style_image], replace(PRESETS["best"], size=size), weights, device=device)
    reached: float | None = None
    lowest = float("inf")
    latest: list[Iteration] = []
    while reached is None and run.step(latest.append):
        if latest[-1].size == (size, size) and latest[-1].number % 5 == 0:
            lowest = min(lowest, judged(run))
            reached = run.seconds if lowest <= goal else None
    context.on_progress(f"best: loss {lowest:.4g} after {run.seconds:.1f} s")
    return {
        "size": size,
        "iterations": iterations,
        "loss": goal,
        "baseline_seconds": needed,
        "best_seconds": reached,
        "best_lowest_loss": lowest,
        "ratio": None if reached is None else reached / needed,
    }


def tables(document: Document) -> list[str]:
    """Render an iteration by size, and the time to a result."""
    shown = [{**row, "a_megapixel": row["median"] * 1000 / row["size"] ** 2} for row in document["iterations"]]
    bound = columns(
        "relative to bound       | per megapixel       | peak memory",
        "{ratio_to_bound:.2f}    | {a_megapixel:.2f} s | {peak_mib:.0f} MiB",
    )
    whole = document.get("whole") or []
    precisions = sorted({row["precision"].upper() for row in document["iterations"]}) if whole else []
    return [
        "Milliseconds per iteration. The bound is the time of the convolutions, forward and backward, at three "
        "quarters of the rate of a matrix product that is measured just before."
        + "".join(f" Both use {name} on the GPU." for name in precisions),
        "",
        *table(shown, {"size": "{size}²"} | SUMMARY | bound),
        *(["", *map(_whole_line, whole)] if whole else []),
        *(["", _result_line(document["result"])] if document["result"] else []),
    ]


def _whole_line(run: Document) -> str:
    return (
        f"- {run['iterations']} iterations at {run['size']}², from the images to the result: "
        f"**{run['seconds']:.2f} s**; lowest loss {run['lowest_loss']:.3f}."
    )


def _result_line(result: Document) -> str:
    baseline = (
        f"At {result['size']}², {result['iterations']} iterations of `johnson2016-baseline` take "
        f"{short(result['baseline_seconds'])} s to a loss of {result['loss']:.3f}."
    )
    if result["ratio"] is None:
        return f"{baseline} `best` does not reach this loss; its lowest is {result['best_lowest_loss']:.3f}."
    took = f"{short(result['best_seconds'])} s, **{result['ratio']:.2f}** of the time"
    return f"{baseline} `best` reaches this loss in {took}."


GPU = GatysEffort(smallest=256, timed=50)

SUITE = Suite(
    name="gatys",
    title="Gatys' optimisation",
    measure=measure,
    tables=tables,
    effort=GatysEffort(),
    on_cpu={"default": Cost(60, GatysEffort(size=128, iterations=100, largest=512)), "full": Cost(180, GatysEffort())},
    on_gpu={"default": Cost(30, GPU), "full": Cost(30, GPU)},
    rank=70,
)
