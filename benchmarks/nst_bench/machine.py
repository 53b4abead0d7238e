"""What machine the figures were taken on, and how fast its arithmetic and its memory are."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from nst_bench.measure import timed, timed_on_gpu

PACKAGES = ("nst", "torch", "onnxruntime-openvino", "onnxruntime", "tritonclient", "numpy")


def header(schema: str) -> dict[str, Any]:
    """What every results document begins with: its schema, when, and on what machine."""
    return {"schema": schema, "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "machine": describe()}


def describe() -> dict[str, Any]:
    """Processor, cores, memory (GiB), GPU, system, versions, and the rates that bound all figures.

    `matrix_product_gflops` and `memory_gbs` (GB/s) are the processor's; `cuda` has those of the GPU, its driver,
    clocks and precision, or says under `missing` why there is none.
    """
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: _version(name) for name in PACKAGES if _version(name)},
        "matrix_product_gflops": round(matrix_product_rate(), 1),
        "memory_gbs": round(memory_rate(), 1),
        "cuda": _cuda(),
    }


def matrix_product_rate(size: int = 2048, repeats: int = 5, device: str = "cpu") -> float:
    """The best of some FP32 products of `size`^2 matrices, in GFLOP/s: the device's ceiling."""
    a, b = torch.rand(size, size, device=device), torch.rand(size, size, device=device)
    return 2.0 * size**3 / _best(lambda: a @ b, repeats, device) / 1e9


def memory_rate(mib: int = 256, repeats: int = 5, device: str = "cpu") -> float:
    """The best of some copies of `mib` MiB, more than any cache holds, in GB/s; what is read and written counts."""
    a = torch.ones(mib << 18, device=device)
    b = torch.empty_like(a)
    return 2.0 * a.nbytes / _best(lambda: b.copy_(a), repeats, device) / 1e9


def _best(work: Callable[[], object], repeats: int, device: str) -> float:
    """Seconds of the fastest of `repeats`, after one that warms up."""
    work()
    return min((timed if device == "cpu" else timed_on_gpu)(work) for _ in range(repeats))


def _cuda() -> dict[str, Any]:
    """What figures of a GPU depend on: the driver, the clocks (MHz), the precision of FP32 arithmetic, and its rates.

    PyTorch's default lets convolutions round their FP32 inputs to TF32 and matrix products not; that is left as it
    is, and stated. The rate of a product is of FP32 for `matrix_product_gflops`, of TF32 for `tf32_gflops`.
    """
    if not torch.cuda.is_available():
        return {"missing": f"no CUDA device that torch {torch.__version__} can use"}
    queried = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")
    kept = torch.get_float32_matmul_precision()
    rates = {}
    try:
        for name, precision in (("matrix_product_gflops", "highest"), ("tf32_gflops", "high")):
            torch.set_float32_matmul_precision(precision)
            rates[name] = round(matrix_product_rate(8192, device="cuda"), 1)
    finally:
        torch.set_float32_matmul_precision(kept)
    return {
        "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability()),
        "cuda": torch.version.cuda,
        **_nvidia_smi(queried),
        "precision": {"matrix_products": kept, "convolutions": torch.backends.cudnn.conv.fp32_precision},  # type: ignore[attr-defined]
        **rates,
        "memory_gbs": round(memory_rate(1024, device="cuda"), 1),
    }


def _nvidia_smi(fields: tuple[str, ...]) -> dict[str, str]:
    """The driver's own words about the first GPU; empty where its tool is not installed."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, timeout=20.0, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (value.strip() for value in line.split(",")), strict=False))


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
