"""Description of the measured machine, with the rates of its arithmetic and memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from nst_bench.machine.gpu import clocks, why_no_cuda
from nst_bench.measure import timed, timed_on_gpu
from nst_core.devices import Gpu, gpus
from nst_core.packages.onnx_runtime import installed

PACKAGES = (
    "nst",
    "torch",
    "onnxruntime-openvino",
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt",
    "tensorrt-cu13",
    "tensorrt-cu12",
    "tensorrt-rtx",
    "cuda-bindings",
    "nvidia-cudnn-cu13",
    "nvidia-cudnn-cu12",
    "tritonclient",
    "numpy",
)
"""Packages whose versions results depend on."""


def describe() -> dict[str, Any]:
    """Describe processor, cores, memory (GiB), GPU, system, versions, and peak rates.

    `matrix_product_gflops` and `memory_gbs` (GB/s) are the processor's; `cuda` has those of the GPU, and its driver,
    clocks and precision, or the reason under `missing`.
    """
    found, reason = gpus()
    gpu = found[0] if found else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": gpu.name if gpu else None,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": installed(PACKAGES),
        "matrix_product_gflops": round(matrix_product_rate(), 1),
        "memory_gbs": round(memory_rate(), 1),
        "cuda": _cuda(gpu) if gpu else {"missing": reason},
    }


def matrix_product_rate(
    size: int = 2048, device: str = "cpu", precision: Literal["highest", "high"] = "highest"
) -> float:
    """Return the best rate of five products of `size`^2 matrices in GFLOP/s: FP32, or TF32 on a GPU with `high`."""
    a, b = torch.rand(size, size, device=device), torch.rand(size, size, device=device)
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        return 2.0 * size**3 / _best(lambda: a @ b, device) / 1e9
    finally:
        torch.set_float32_matmul_precision(kept)


def memory_rate(mib: int = 256, device: str = "cpu") -> float:
    """Return the best rate of five copies of `mib` MiB, larger than the caches, in GB/s read and written."""
    a = torch.ones(mib << 18, device=device)
    b = torch.empty_like(a)
    return 2.0 * a.nbytes / _best(lambda: b.copy_(a), device) / 1e9


def _best(work: Callable[[], object], device: str) -> float:
    """Return the seconds of the fastest of five runs, after a warm-up."""
    work()
    return min((timed if device == "cpu" else timed_on_gpu)(work) for _ in range(5))


def _cuda(gpu: Gpu) -> dict[str, Any]:
    """Describe what a GPU's figures depend on: driver, CUDA, clocks under load, FP32 precision, peak rates.

    By default PyTorch rounds the FP32 inputs of convolutions to TF32, but not those of matrix products; `precision`
    says so. `matrix_product_gflops` is the rate in FP32, `tf32_gflops` in TF32; if PyTorch cannot use the GPU,
    `unmeasured` has the reason.
    """
    known = {
        "compute_capability": gpu.compute_capability,
        "memory_gib": round(gpu.memory / 2**30, 1),
        "driver": gpu.driver,
        "driver_cuda": f"{gpu.cuda[0]}.{gpu.cuda[1]}",
    }
    if not torch.cuda.is_available():
        return {**known, **clocks(gpu), "unmeasured": why_no_cuda()}
    rates = {
        "matrix_product_gflops": round(matrix_product_rate(8192, device="cuda"), 1),
        "tf32_gflops": round(matrix_product_rate(8192, device="cuda", precision="high"), 1),
    }
    working_clocks = clocks(gpu)  # right after the work, before they drop again
    return {
        **known,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        **working_clocks,
        "precision": {
            "matrix_products": torch.get_float32_matmul_precision(),
            "convolutions": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        },
        **rates,
        "memory_gbs": round(memory_rate(1024, device="cuda"), 1),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
