"""Choose the compute device: one of this machine's NVIDIA GPUs or the CPU, with the reason.

GPUs are found through NVML, which needs the driver but neither PyTorch nor the CUDA libraries.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from nst_core.errors import InputError

DeviceChoice = Literal["auto", "cpu", "gpu"]
"""Values of `--device`."""

DEVICE_HELP = "Compute device; auto uses the NVIDIA GPU if there is one, else the CPU."
"""Help of every `--device`."""


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU. `memory` is in bytes; `cuda` is the newest CUDA version that its driver supports."""

    index: int
    name: str
    uuid: str
    compute_capability: str
    memory: int
    driver: str
    cuda: tuple[int, int]


@dataclass(frozen=True)
class Device:
    """A device and the reason for its choice; `gpu` is None on a CPU."""

    kind: Literal["cpu", "gpu"]
    reason: str
    gpu: Gpu | None = None

    def __str__(self) -> str:
        """Return text for a message, such as `gpu: NVIDIA H100 80GB HBM3 (compute capability 9.0)`."""
        return f"{self.kind}: {self.reason}"


def choose(wanted: DeviceChoice = "auto") -> Device:
    """Return the device for `wanted`: with `auto` the first GPU, else the CPU; `InputError` for a missing GPU."""
    if wanted == "cpu":
        return Device("cpu", "chosen with --device cpu")
    found, missing = gpus()
    if found:
        gpu = found[0]
        return Device("gpu", f"{gpu.name} (compute capability {gpu.compute_capability})", gpu)
    if wanted == "gpu":
        raise InputError(f"--device gpu: {missing}; use --device cpu or --device auto")
    return Device("cpu", missing)


def gpus() -> tuple[list[Gpu], str]:
    """Return the GPUs that this process may use, and the reason if there are none (else an empty string).

    `CUDA_VISIBLE_DEVICES` is interpreted as by CUDA: indices or UUIDs up to the first that does not exist.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], f"no NVIDIA GPU (NVML: {error})"
    try:
        found = [_describe(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return [], f"the NVIDIA driver does not respond (NVML: {error})"
    finally:
        pynvml.nvmlShutdown()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        found = _visible(found, visible)
        return found, "" if found else f"CUDA_VISIBLE_DEVICES={visible!r} hides every NVIDIA GPU"
    return found, "" if found else "the NVIDIA driver reports no GPU"


def _describe(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    cuda = nvml.nvmlSystemGetCudaDriverVersion()
    return Gpu(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        compute_capability=f"{major}.{minor}",
        memory=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        driver=_text(nvml.nvmlSystemGetDriverVersion()),
        cuda=(cuda // 1000, cuda % 1000 // 10),
    )


def _text(value: str | bytes) -> str:
    """Decode an NVML string, which older versions of its package return as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _visible(found: list[Gpu], visible: str) -> list[Gpu]:
    """Return the GPUs that `CUDA_VISIBLE_DEVICES` names, in its order, as CUDA does."""
    chosen: list[Gpu] = []
    for name in filter(None, (part.strip() for part in visible.split(","))):
        match = [
            gpu for gpu in found if name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name))
        ]
        if not match:
            break
        chosen.append(match[0])
    return chosen
