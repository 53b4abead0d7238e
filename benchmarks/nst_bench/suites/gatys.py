"""What the optimisation costs: an iteration by size against the machine's arithmetic, and a result.

An artist waits for the result, not for the iteration: how long does the preset `best` take to the
loss that Johnson's baseline has after some hundred iterations, both measured by the baseline's loss of the picture
that is written?
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from nst_bench.machine import header, matrix_product_rate
from nst_bench.measure import summarize
from nst_core.images import fitted, open_picture, sample_photographs
from nst_trainer.optimize import Iteration, Run, optimize
from nst_trainer.photos import to_tensor
from nst_trainer.settings import PRESETS, OptimizationSettings
from nst_trainer.vgg import BLOCKS, LAYERS
from nst_trainer.weights import CONVOLUTIONS, Weights

SCHEMA = "nst-bench-gatys/1"
SIZES = (128, 256, 512, 1024)
EFFICIENCY = 0.75
"""Share of the matrix product's rate that convolutions are expected to reach."""


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
    tick: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """Iterations at each of `sizes`, ascending, then the time to a result at `result_size`; a document."""
    rows = []
    for size in sizes:
        settings = replace(PRESETS["johnson2016-baseline"], size=size, iterations=iterations + 1)
        rate = matrix_product_rate()
        stamps = _stamps(settings, weights, size)
        summary = summarize([after - before for before, after in pairwise(stamps)])
        bound = 1000 * gflop(settings, weights, size) / (rate * EFFICIENCY)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append(
            {
                "size": size,
                **asdict(summary),
                "gflop": gflop(settings, weights, size),
                "matrix_product_gflops": rate,
                "ratio_to_bound": summary.median / bound,
                "peak_mib": peak,
            }
        )
        tick(f"{size} x {size}: {summary.median:.0f} ms")
    return {
        **header(SCHEMA),
        "iterations": rows,
        "result": _result(weights, result_size, result_iterations, style, tick),
    }


def _stamps(settings: OptimizationSettings, weights: Weights, size: int) -> list[float]:
    """Seconds since the start after each iteration; the loss network and the targets are not counted."""
    content, style = _pictures(size, None)
    seconds: list[float] = []
    optimize(content, [style], settings, weights=weights, on_iteration=lambda one: seconds.append(one.seconds))
    return seconds


def _pictures(size: int, style: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    photographs = sample_photographs()
    content = to_tensor(fitted(open_picture(photographs[-1]), size, size))
    return content, to_tensor(open_picture(style or photographs[2]))


def _result(
    weights: Weights, size: int, iterations: int, style: Path | None, tick: Callable[[str], None]
) -> dict[str, Any]:
    """Seconds of the baseline for its loss after `iterations`, and of `best` to the same loss.

    Both are judged by the baseline's loss of the picture as it would be written, its values cut to [0, 1].
    """
    content, painting = _pictures(size, style)
    baseline = Run(
        content, [painting], replace(PRESETS["johnson2016-baseline"], size=size, iterations=iterations), weights
    )

    @torch.no_grad()
    def judged(run: Run) -> float:
        return baseline.loss(run.picture(), baseline.target).total.item()

    while baseline.step(lambda iteration: None):
        pass
    goal, needed = judged(baseline), baseline.seconds
    tick(f"{iterations} iterations of the baseline: loss {goal:.4g} after {needed:.0f} s")
    run = Run(content, [painting], replace(PRESETS["best"], size=size), weights)
    reached: float | None = None
    lowest = float("inf")
    latest: list[Iteration] = []
    while reached is None and run.step(latest.append):
        if latest[-1].size == (size, size) and latest[-1].number % 5 == 0:
            lowest = min(lowest, judged(run))
            reached = run.seconds if lowest <= goal else None
    tick(f"best: loss {lowest:.4g} after {run.seconds:.0f} s")
    return {
        "size": size,
        "iterations": iterations,
        "loss": goal,
        "baseline_seconds": needed,
        "best_seconds": reached,
        "best_lowest_loss": lowest,
        "ratio": None if reached is None else reached / needed,
    }
