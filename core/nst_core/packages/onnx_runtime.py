"""Import `onnxruntime`, which several packages provide; two in one environment overwrite each other's files."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from nst_core import devices
from nst_core.distribution import install_command
from nst_core.errors import InputError, MissingExtra
from nst_core.process import default_variable

log = logging.getLogger(__name__)

DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-qnn",
    "onnxruntime-training",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
)
"""Packages on PyPI that provide the module."""


def import_onnxruntime(extra: str = "export") -> Any:
    """Import the module `onnxruntime` with its telemetry off.

    Raises `MissingExtra` if no package provides it; on a machine with a GPU, the message names the extra for that GPU
    instead of `extra`. Raises `InputError` if two packages provide it, since their files are then mixed.
    """
    found = installed(DISTRIBUTIONS)
    if len(found) > 1:
        names = " and ".join(f"{name} {number}" for name, number in found.items())
        raise InputError(
            f"{names} are installed together, but each provides the module onnxruntime; "
            f"run pip uninstall -y {' '.join(found)}, then {install_command(machine_extra(extra))}"
        )
    first = "onnxruntime" not in sys.modules
    try:
        with default_variable("ORT_DISABLE_TELEMETRY", "1"):
            module = importlib.import_module("onnxruntime")
            module.disable_telemetry_events()  # also creates ONNX Runtime's environment, which reads the variable once
    except ModuleNotFoundError as error:
        raise MissingExtra(machine_extra(extra), error.name or "onnxruntime") from error
    if first:
        log.info("ONNX Runtime %s with %s", module.__version__, ", ".join(module.get_available_providers()))
    if "CUDAExecutionProvider" in module.get_available_providers() and devices.gpus()[0]:
        # CUDA and cuDNN are packages of their own, which ONNX Runtime finds only if it is told to look.
        with redirect_stdout(sys.stderr):  # its warnings must not mix with results
            module.preload_dlls()
    return module


def installed(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine_extra(otherwise: str) -> str:
    """Return the extra with ONNX Runtime for this machine: `gpu` or `gpu-cu12` by its driver, else `otherwise`."""
    found, _ = devices.gpus()
    if not found:
        return otherwise
    return "gpu" if found[0].cuda >= (13, 0) else "gpu-cu12"
