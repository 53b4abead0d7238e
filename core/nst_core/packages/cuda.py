"""Check that the installed packages for NVIDIA GPUs fit the machine's driver."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

from nst_core.devices import Gpu
from nst_core.distribution import install_command
from nst_core.errors import InputError

MINIMUM_CUDA = 12
"""Minimum major version of CUDA for `nst[gpu-cu12]`."""

CUDA_RUNTIME = re.compile(r"nvidia-cuda-runtime(?:-cu\d+)?\W*(\d+)")
"""The requirement of `onnxruntime-gpu` that names its CUDA version, such as `nvidia-cuda-runtime~=13.0; extra ==
"cuda"`."""


def check_driver(gpu: Gpu) -> None:
    """Raise `InputError` if an installed package is built for a newer CUDA than the driver of `gpu` supports.

    It reads the metadata of ONNX Runtime, TensorRT and cuda-bindings without importing them. An older CUDA is not an
    error: drivers run programs for every older CUDA.
    """
    for package, version, cuda in _built_for():
        if cuda > gpu.cuda[0]:
            driver = f"the driver {gpu.driver} supports CUDA {gpu.cuda[0]}.{gpu.cuda[1]}"
            raise InputError(f"{driver}, but {package} {version} is built for CUDA {cuda}; {_way_out(gpu)}")


def _way_out(gpu: Gpu) -> str:
    if gpu.cuda[0] < MINIMUM_CUDA:
        return f"update the driver to CUDA {MINIMUM_CUDA} or later, or use --device cpu"
    return f"run {install_command('gpu-cu12')}"


def _built_for() -> Iterator[tuple[str, str, int]]:
    """Yield the installed packages: name, version, and the major CUDA version that they need."""
    if version := _version("onnxruntime-gpu"):
        found = map(CUDA_RUNTIME.match, metadata.requires("onnxruntime-gpu") or ())
        for match in filter(None, found):
            yield "onnxruntime-gpu", version, int(match[1])
    for cuda in (13, 12):
        if version := _version(f"tensorrt-cu{cuda}"):
            yield f"tensorrt-cu{cuda}", version, cuda
    if version := _version("cuda-bindings"):
        yield "cuda-bindings", version, int(version.partition(".")[0])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
