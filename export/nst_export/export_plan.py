"""Settings of an export: target, precision, runtime, and how the model is served."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass, field
from typing import Literal

from nst_core.devices import Device
from nst_core.engines import plans
from nst_core.engines.plans import Profile
from nst_core.errors import InputError
from nst_export.errors import ExportError
from nst_export.graph.rewrites import DEFAULT_REWRITES, REWRITES, UNSAFE_REWRITES, Runtime
from nst_export.repository.model_config import Provider
from nst_export.tensorrt import DEFAULT_SHAPES, import_tensorrt, require_gpu
from nst_export.verification.agreement import TOLERANCES, Tolerance
from nst_export.verification.gpu import GPU_TOLERANCES

Target = Literal["onnx", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16"]

FILES: dict[Target, str] = {"onnx": plans.GRAPH, "tensorrt": plans.PLAN, "tensorrt-rtx": "model.engine"}
"""The served file of a version, by target."""


def default_provider() -> Provider:
    """Return the execution provider for this machine's CPU: OpenVINO where ONNX Runtime has packages with it."""
    return "openvino" if platform.machine() in ("x86_64", "AMD64") and sys.platform != "darwin" else "cpu"


def runtime_for(device: Device, target: Target | None = None) -> Runtime:
    """Return the runtime for `device`: on a GPU TensorRT, or ONNX Runtime CUDA if the `target` is an ONNX file."""
    if device.gpu is None:
        return "cpu"
    return "gpu" if target == "onnx" else "tensorrt"


@dataclass(frozen=True)
class ExportPlan:
    """Settings of an export.

    `target` None means what the runtime needs: a plan for TensorRT, which the server builds at its first start if that
    is not possible here, otherwise an ONNX file. `precision` None means FP16 for TensorRT, otherwise FP32. `rewrites`
    None means `DEFAULT_REWRITES`. `provider` runs ONNX files on a CPU. `profile` has the shapes that TensorRT accepts,
    `compute_capabilities` (`SM89`) the GPUs of `tensorrt-rtx` engines. Raises `InputError` for unknown or unsafe
    rewrites.
    """

    target: Target | None = None
    precision: Precision | None = None
    runtime: Runtime = "cpu"
    provider: Provider = field(default_factory=default_provider)
    rewrites: tuple[str, ...] | None = None
    profile: Profile = field(default_factory=lambda: Profile.parse(DEFAULT_SHAPES))
    compute_capabilities: tuple[str, ...] = ()
    tiled: bool = False
    cores: int = 1
    instances: int = 1
    keep: int | None = None

    def __post_init__(self) -> None:
        if unknown := [name for name in self.rewrites or () if name not in REWRITES]:
            known = ", ".join(REWRITES)
            raise InputError(f"--rewrites has {unknown[0]!r}; choose from {known}, or give none")
        for name, others in UNSAFE_REWRITES.get(self.runtime, {}).items():
            if name in (self.rewrites or ()):
                raise InputError(f"--rewrites {name} may shift images on {self.runtime}; use {others} instead")

    @property
    def resolved_target(self) -> Target:
        """The target, or its default."""
        return self.target or ("tensorrt" if self.runtime == "tensorrt" else "onnx")

    @property
    def resolved_precision(self) -> Precision:
        """The precision, or its default."""
        return self.precision or ("fp16" if self.runtime == "tensorrt" else "fp32")

    @property
    def resolved_rewrites(self) -> tuple[str, ...]:
        """The rewrites in order, or their default; always with `wrap`: the operator set has no circular padding."""
        names = DEFAULT_REWRITES[self.runtime] if self.rewrites is None else self.rewrites
        return tuple(name for name in REWRITES if name in names or name == "wrap")

    @property
    def on_openvino(self) -> bool:
        """Whether OpenVINO serves the model."""
        return self.runtime == "cpu" and self.provider == "openvino"

    @property
    def tolerance(self) -> Tolerance:
        """The allowed difference on the CPU."""
        return TOLERANCES[self.resolved_precision]

    @property
    def gpu_tolerance(self) -> Tolerance:
        """The allowed difference on the GPU."""
        return GPU_TOLERANCES[self.resolved_precision]

    def check_target(self) -> None:
        """Raise `ExportError` early if an explicitly given target cannot be built here."""
        if self.target not in ("tensorrt", "tensorrt-rtx"):
            return
        try:
            import_tensorrt(self.target)
            if self.target == "tensorrt":
                require_gpu()
        except ExportError as error:
            advice = "; or use --for tensorrt: nst serve then builds the plan" if self.target == "tensorrt" else ""
            raise ExportError(f"--target {self.target}: {error}{advice}") from error
