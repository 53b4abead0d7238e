"""Build TensorRT plans for this machine's GPU (`tensorrt`), or engines for other GPUs (`tensorrt_rtx`).

`nst_core.engines.plans` builds them. This module finds what the two targets need, and reports what is missing.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from nst_core import devices
from nst_core.devices import Gpu
from nst_core.distribution import install_command
from nst_core.engines import building, plans
from nst_core.engines.building import ProgressOf
from nst_core.engines.plans import Profile
from nst_core.errors import InputError
from nst_core.packages.cuda import check_driver
from nst_core.packages.onnx_runtime import machine_extra
from nst_export.errors import ExportError

Library = Literal["tensorrt", "tensorrt-rtx"]

log = logging.getLogger(__name__)

DEFAULT_SHAPES = "16x16/512x512/4x1920x1920"
"""Default of `--shapes`: a plan's minimum, optimum and maximum."""


def parse_shapes(text: str) -> Profile:
    """Parse `--shapes`; raises `InputError`."""
    try:
        return Profile.parse(text)
    except ValueError as error:
        raise InputError(f"--shapes: {error}") from error


def import_tensorrt(library: Library) -> Any:
    """Import the Python module; raises `ExportError` with how to install it."""
    try:
        return importlib.import_module(library.replace("-", "_"))
    except ImportError as error:
        how = install_command("tensorrt" if library == "tensorrt-rtx" else machine_extra("gpu"))
        raise ExportError(f"the package {library} is not installed; run {how}") from error


def require_gpu() -> Gpu:
    """Return this machine's GPU, for which plans are built; raises `ExportError` without one or a recent driver."""
    found, missing = devices.gpus()
    if not found:
        raise ExportError(missing)
    check_driver(found[0])
    return found[0]


def compute_capabilities(names: str | None) -> list[str]:
    """Return TensorRT's names (SM89, SM120) for `8.9,12.0`; None means all that it supports. Raises `InputError`."""
    trt = import_tensorrt("tensorrt-rtx")
    known = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    known.sort(key=lambda name: int(name[2:]))
    if names is None:
        return known
    asked = [f"SM{name.strip().replace('.', '')}" for name in names.split(",")]
    if unknown := [name for name in asked if name not in known]:
        numbers = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in known)
        raise InputError(
            f"--compute-capability has {unknown[0][2:]!r}; TensorRT-RTX {trt.__version__} supports {numbers}"
        )
    return asked


def compute_capability_name(gpu: Gpu) -> str:
    """Return TensorRT's name for a GPU's compute capability, such as SM89."""
    return f"SM{gpu.compute_capability.replace('.', '')}"


def build_rtx_engine(graph: Path, profile: Profile, multiple: int, capabilities: Sequence[str]) -> bytes:
    """Build a TensorRT for RTX engine for GPUs of these compute capabilities; this machine needs no GPU.

    Raises `ExportError` with TensorRT's own message.
    """
    trt = import_tensorrt("tensorrt-rtx")
    try:
        return building.build(graph.read_bytes(), profile, multiple, library=trt, compute_capabilities=capabilities)
    except plans.PlanError as error:
        raise ExportError(str(error)) from error


def build_plan(
    version: Path, profile: Profile, multiple: int, name: str, progress_of: ProgressOf = building.unwatched
) -> Path:
    """Return the plan of `version`/model.onnx for this machine's GPU, with its record `.json` beside it.

    It is found in the version's folder or the user's cache, or built into the cache. `name` is the model's name in
    errors and in `progress_of`. Raises `ExportError`.
    """
    gpu, trt = require_gpu(), import_tensorrt("tensorrt")
    try:
        with progress_of(name) as on_progress:
            plan = building.ensure(
                version,
                profile,
                multiple,
                library=trt,
                gpu=gpu.name,
                compute_capability=gpu.compute_capability,
                on_progress=on_progress,
            )
    except (plans.PlanError, OSError) as error:
        raise ExportError(f"could not build a TensorRT plan for {name}: {error}") from error
    log.info("TensorRT plan of %s for %s: %s", name, gpu.name, plan)
    return plan
