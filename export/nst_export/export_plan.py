"""What to make of a checkpoint: the target, the precision, what runs it, and how it is served."""

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
"""The file of a version that is run, by target."""


def default_provider() -> Provider:
    """The execution provider of this machine's CPU: OpenVINO where ONNX Runtime has packages with it."""
    return "openvino" if platform.machine() in ("x86_64", "AMD64") and sys.platform != "darwin" else "cpu"


def runtime_for(device: Device, target: Target | None = None) -> Runtime:
    """What runs a model on `device`: on a GPU TensorRT, or ONNX Runtime CUDA if the `target` is an ONNX file."""
    if device.gpu is None:
        return "cpu"
    return "gpu" if target == "onnx" else "tensorrt"


@dataclass(frozen=True)
class ExportPlan:
    """What to make of a checkpoint, and for which machine.

    `target` None is what the runtime needs: a plan for TensorRT, which the server builds at its first start if that is
    not possible here, otherwise an ONNX file. `precision` None is FP16 for TensorRT, otherwise FP32. `rewrites` None
    are `DEFAULT_REWRITES`. `provider` runs ONNX files on a CPU. `profile` has the shapes that TensorRT takes,
    `compute_capabilities` (`SM89`) the GPUs that engines of `tensorrt-rtx` are for.
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
            raise InputError(f"no rewrite is called {unknown[0]!r}; there are {known}, or none")
        for name, others in UNSAFE_REWRITES.get(self.runtime, {}).items():
            if name in (self.rewrites or ()):
                raise InputError(f"--rewrites {name}: {self.runtime} may shift the image with it; use {others}")

    @property
    def resolved_target(self) -> Target:
        """The target, also where none is given."""
        return self.target or ("tensorrt" if self.runtime == "tensorrt" else "onnx")

    @property
    def resolved_precision(self) -> Precision:
        """The precision, also where none is given."""
        return self.precision or ("fp16" if self.runtime == "tensorrt" else "fp32")

    @property
    def resolved_rewrites(self) -> tuple[str, ...]:
        """The rewrites, in order; always with circular padding, which the operator set lacks."""
        names = DEFAULT_REWRITES[self.runtime] if self.rewrites is None else self.rewrites
        return tuple(name for name in REWRITES if name in names or name == "wrap")

    @property
    def on_openvino(self) -> bool:
        """Whether OpenVINO serves the model."""
        return self.runtime == "cpu" and self.provider == "openvino"

    @property
    def tolerance(self) -> Tolerance:
        """What may differ on the CPU."""
        return TOLERANCES[self.resolved_precision]

    @property
    def gpu_tolerance(self) -> Tolerance:
        """What may differ on the GPU."""
        return GPU_TOLERANCES[self.resolved_precision]

    def check_target(self) -> None:
        """Raise `ExportError` if a target that was asked for by name cannot be built here, before minutes are spent."""
        if self.target not in ("tensorrt", "tensorrt-rtx"):
            return
        try:
            import_tensorrt(self.target)
            if self.target == "tensorrt":
                require_gpu()
        except ExportError as error:
            advice = "; --for tensorrt leaves the plan to nst-serve's first start" if self.target == "tensorrt" else ""
            raise ExportError(f"--target {self.target}: {error}{advice}") from error
