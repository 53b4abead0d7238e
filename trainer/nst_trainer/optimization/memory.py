"""How much memory an optimisation needs, and how much there is."""

from __future__ import annotations

from pathlib import Path

import torch

from nst_core.errors import InputError
from nst_trainer.optimization.settings import OptimizationSettings

FIXED_BYTES = 500 * 2**20
BYTES_PER_PIXEL, RECOMPUTING_BYTES_PER_PIXEL = 2800, 1600
"""The peaks at 512 and 768 pixels on a CPU (dev/LOG.md)."""
HISTORY_BYTES_PER_PIXEL = 2 * 3 * 4
"""Of a pair in L-BFGS's history: two FP32 values for each of three channels."""


def check_memory(settings: OptimizationSettings, shape: tuple[int, int], device: torch.device) -> None:
    """Raise `InputError`, naming the largest size that fits, when the memory of `device` does not suffice.

    `shape` gives the proportions (height, width). Where the system does not tell what is free
    (other than Linux), nothing is refused.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    if free is None:
        return
    ratio = min(shape) / max(shape)
    bytes_per_pixel = RECOMPUTING_BYTES_PER_PIXEL if settings.low_memory else BYTES_PER_PIXEL
    if settings.optimizer == "lbfgs":
        bytes_per_pixel += HISTORY_BYTES_PER_PIXEL * min(settings.history, settings.iterations)
    needed = FIXED_BYTES + bytes_per_pixel * settings.size**2 * ratio
    if needed > free:
        largest = int(max(free - FIXED_BYTES, 0) / bytes_per_pixel / ratio) ** 0.5 // 16 * 16
        also = "" if settings.low_memory else ", or go beyond with --low-memory"
        raise InputError(
            f"{settings.size} pixels need about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free: "
            f"the largest --size that fits is {largest:.0f}{also}"
        )


def free_memory() -> int | None:
    """Bytes that are available without swapping, from /proc/meminfo; None where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
