"""The GPU: whether PyTorch can use it, and its clocks and energy as the driver reports them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from nst_core.devices import Device, Gpu
from nst_core.errors import InputError, NstError


def torch_device(device: Device) -> torch.device:
    """Return the chosen device for PyTorch. Raises `InputError` if PyTorch cannot use the GPU."""
    if device.gpu is None:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(f"{why_no_cuda()} ({device.gpu.name}); install PyTorch for CUDA")
    return torch.device("cuda")


def why_no_cuda() -> str:
    """Return why PyTorch cannot use a GPU."""
    build = "is built without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda} finds none"
    return f"torch {torch.__version__} {build} and cannot use a GPU"


class EnergyError(NstError):
    """The driver does not count this GPU's energy."""


def clocks(gpu: Gpu) -> dict[str, int]:
    """Return current and maximum clocks (MHz), power limit (W) and temperature (°C), if the driver reports them."""
    with _opened(gpu) as (nvml, handle):
        queries: dict[str, Callable[[], Any]] = {
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "highest_sm_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "power_limit_w": lambda: round(nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        }
        found = {}
        for name, query in queries.items():
            try:
                found[name] = int(query())
            except nvml.NVMLError:  # a virtual GPU hides some values
                continue
        return found


def joules(gpu: Gpu) -> float:
    """Return the energy of the whole GPU since its driver was loaded. Raises `EnergyError` if it is not counted.

    The counter is updated about ten times per second, so a measured block must take seconds.
    """
    with _opened(gpu) as (nvml, handle):
        try:
            return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000.0
        except nvml.NVMLError as error:
            raise EnergyError(f"{gpu.name}: the driver does not count its energy (NVML: {error})") from error


@contextmanager
def _opened(gpu: Gpu) -> Iterator[tuple[Any, Any]]:
    """Yield NVML and its handle of the GPU."""
    import pynvml

    nvml: Any = pynvml
    nvml.nvmlInit()
    try:
        yield nvml, nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
    finally:
        nvml.nvmlShutdown()
