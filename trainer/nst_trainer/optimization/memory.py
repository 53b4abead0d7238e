"""Estimate the memory of an optimisation, and read how much is free."""

from __future__ import annotations

from pathlib import Path

import torch

from nst_core.errors import InputError
from nst_trainer.optimization.settings import OptimizationSettings

FIXED_BYTES = 500 * 2**20
BYTES_PER_PIXEL, RECOMPUTING_BYTES_PER_PIXEL = 2800, 1600
"""Fitted to the peaks at 512 and 768 pixels on a CPU (dev/LOG.md)."""
HISTORY_BYTES_PER_PIXEL = 2 * 3 * 4
"""A pair in L-BFGS's history has two FP32 values for each of three channels."""


def check_memory(settings: OptimizationSettings, shape: tuple[int, int], device: torch.device) -> None:
    """Raise `InputError` with the largest size that fits if the memory of `device` is too small.

    `shape` gives the proportions (height, width). Nothing is refused where the free memory is unknown (other systems
    than Linux).
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
        also = "" if settings.low_memory else ", or add --low-memory"
        raise InputError(
            f"{settings.size} pixels need about {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are "
            f"free; use --size {largest:.0f} or smaller{also}"
        )


def free_memory() -> int | None:
    """Return the bytes available without swapping, from /proc/meminfo; None without that file."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
