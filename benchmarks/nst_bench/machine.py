"""What machine the figures were taken on, and how fast its arithmetic is."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from nst_bench.measure import timed

PACKAGES = ("nst", "torch", "onnxruntime-openvino", "onnxruntime", "tritonclient", "numpy")


def header(schema: str) -> dict[str, Any]:
    """What every results document begins with: its schema, when, and on what machine."""
    return {"schema": schema, "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "machine": describe()}


def describe() -> dict[str, Any]:
    """Processor, cores, memory (GiB), GPU, system, versions and the rate of a matrix product (GFLOP/s)."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: _version(name) for name in PACKAGES if _version(name)},
        "matrix_product_gflops": round(matrix_product_rate(), 1),
    }


def matrix_product_rate(size: int = 2048, repeats: int = 5) -> float:
    """The best of some FP32 products of `size`^2 matrices, in GFLOP/s: the machine's ceiling."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    best = min(timed(lambda: a @ b) for _ in range(repeats))
    return 2.0 * size**3 / best / 1e9


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
