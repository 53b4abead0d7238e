"""What the optimisation costs: an iteration by size against the machine's arithmetic, and a result.

An artist waits for the result, not for the iteration: how long does the preset `best` take to the
loss that Johnson's baseline has after some hundred iterations, both measured by the baseline's loss of the picture
that is written?
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from nst_bench.machine.description import document_header, matrix_product_rate
from nst_bench.measure import summarize
from nst_core.images import fit, open_image, sample_photographs
from nst_trainer.images import to_tensor
from nst_trainer.optimization.cuda_graph import WARM_UP_ITERATIONS
from nst_trainer.optimization.gatys import ImageOptimization, Iteration
from nst_trainer.optimization.settings import PRESETS, OptimizationSettings
from nst_trainer.vgg import BLOCKS, CONVOLUTIONS, LAYERS, Weights

SCHEMA = "nst-bench-gatys/1"
SIZES = (128, 256, 512, 1024)
EFFICIENCY = 0.75
"""Share of the matrix product's rate that convolutions are expected to reach."""
WHOLE = 500
"""Iterations of a whole run, as Johnson et al. count them."""

CPU = torch.device("cpu")


def gflop(settings: OptimizationSettings, weights: Weights, size: int) -> float:
    """Arithmetic of one iteration at `size`^2: the convolutions forward, and backward to the picture."""
    deepest = max(LAYERS.index(name) for kind in ("content", "style") for name in settings.layers(kind))
    total = 0.0
    for block, names in enumerate(BLOCKS):
        for name in names:
            if name in CONVOLUTIONS and LAYERS.index(name) <= deepest:
                total += 2 * weights[f"{name}.weight"].numel() * (size >> block) ** 2
    return 2 * total / 1e9


def measure(
    weights: Weights,
    *,
    sizes: tuple[int, ...] = SIZES,
    iterations: int = 6,
    result_size: int = 256,
    result_iterations: int = 300,
    style: Path | None = None,
    device: torch.device = CPU,
    on_progress: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """Iterations on `device` at each of `sizes`, ascending, then the time to a result at `result_size`; a document.

    On a GPU the iterations are those of its CUDA graph, ten times as many, and each size also has the whole run of
    `WHOLE` iterations as a person waits for it: loss network, targets and capture included. Each iteration ends with
    its losses on the CPU, so that its time is the device's.
    """
    on_gpu = device.type == "cuda"
    whole: list[dict[str, Any]] = []
    rows = []
    for size in sizes:
        rows.append(_iterations(weights, size, 10 * iterations if on_gpu else iterations, device))
        on_progress(f"{size} x {size}: {rows[-1]['median']:.{1 if on_gpu else 0}f} ms")
        if on_gpu:
            whole.append(_whole(weights, size, device))
            on_progress(f"{size} x {size}: {WHOLE} iterations in {whole[-1]['seconds']:.2f} s")
    return {
        **document_header(SCHEMA),
        "device": torch.cuda.get_device_name(device) if on_gpu else "CPU",
        "iterations": rows,
        "whole": whole,
        "result": _result(weights, result_size, result_iterations, style, device, on_progress),
    }


def _iterations(weights: Weights, size: int, iterations: int, device: torch.device) -> dict[str, Any]:
    """The time of an iteration at `size`^2, against what its arithmetic takes."""
    on_gpu = device.type == "cuda"
    skipped = WARM_UP_ITERATIONS + 1 if on_gpu else 1  # those before the graph and the one that captures it
    settings = replace(PRESETS["johnson2016-baseline"], size=size, iterations=iterations + skipped)
    rate = _tf32_rate(device) if on_gpu else matrix_product_rate()
    content, style = _pictures(size, None)
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


def _tf32_rate(device: torch.device) -> float:
    """GFLOP/s of matrix products in TF32, as the optimisation's convolutions compute on a GPU."""
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return matrix_product_rate(8192, device=str(device))
    finally:
        torch.set_float32_matmul_precision(kept)


def _whole(weights: Weights, size: int, device: torch.device) -> dict[str, Any]:
    """Seconds by the clock from pictures on the CPU to the result on the CPU, in a process that is warm."""
    settings = replace(PRESETS["johnson2016-baseline"], size=size, iterations=WHOLE)
    content, style = _pictures(size, None)
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
        "iterations": WHOLE,
        "seconds": seconds,
        "precision": run.precision,
        "lowest_loss": min(losses),
    }


def _pictures(size: int, style: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    photographs = sample_photographs()
    content = to_tensor(fit(open_image(photographs[-1]), size, size))
    return content, to_tensor(open_image(style or photographs[2]))


def _result(
    weights: Weights,
    size: int,
    iterations: int,
    style: Path | None,
    device: torch.device,
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    """Seconds of the baseline for its loss after `iterations`, and of `best` to the same loss.

    Both are judged by the baseline's loss of the picture as it would be written, its values cut to [0, 1].
    """
    content, painting = _pictures(size, style)
    settings = replace(PRESETS["johnson2016-baseline"], size=size, iterations=iterations)
    baseline = ImageOptimization(content, [painting], settings, weights, device=device)

    @torch.no_grad()
    def judged(run: ImageOptimization) -> float:
        return baseline.loss(run.image(), baseline.target).total.item()

    while baseline.step(lambda iteration: None):
        pass
    goal, needed = judged(baseline), baseline.seconds
    on_progress(f"{iterations} iterations of the baseline: loss {goal:.4g} after {needed:.1f} s")
    run = ImageOptimization(content, [painting], replace(PRESETS["best"], size=size), weights, device=device)
    reached: float | None = None
    lowest = float("inf")
    latest: list[Iteration] = []
    while reached is None and run.step(latest.append):
        if latest[-1].size == (size, size) and latest[-1].number % 5 == 0:
            lowest = min(lowest, judged(run))
            reached = run.seconds if lowest <= goal else None
    on_progress(f"best: loss {lowest:.4g} after {run.seconds:.1f} s")
    return {
        "size": size,
        "iterations": iterations,
        "loss": goal,
        "baseline_seconds": needed,
        "best_seconds": reached,
        "best_lowest_loss": lowest,
        "ratio": None if reached is None else reached / needed,
    }
