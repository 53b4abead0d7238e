"""What the driver says of a GPU while it works: its clocks, its limit of power, and the energy that it has used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nst_core.devices import Gpu
from nst_core.errors import NstError


class EnergyError(NstError):
    """The driver does not count this GPU's energy; the message is its reason."""


def clocks(gpu: Gpu) -> dict[str, int]:
    """Clocks of now and the highest ones (MHz), the limit of power (W), degrees Celsius; without what it refuses."""
    with _opened(gpu) as (nvml, handle):
        asked: dict[str, Callable[[], Any]] = {
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "highest_sm_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "power_limit_w": lambda: round(nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        }
        found = {}
        for name, ask in asked.items():
            try:
                found[name] = int(ask())
            except nvml.NVMLError:  # a virtual GPU hides some
                continue
        return found


def joules(gpu: Gpu) -> float:
    """Energy that the whole card has used since its driver was loaded. Raises `EnergyError` where nobody counts it.

    The counter moves some ten times a second, so a block that is measured takes seconds.
    """
    with _opened(gpu) as (nvml, handle):
        try:
            return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000.0
        except nvml.NVMLError as error:
            raise EnergyError(f"{gpu.name}: the driver does not count its energy (NVML: {error})") from error


@contextmanager
def _opened(gpu: Gpu) -> Iterator[tuple[Any, Any]]:
    """NVML and its handle of the GPU."""
    import pynvml

    nvml: Any = pynvml
    nvml.nvmlInit()
    try:
        yield nvml, nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
    finally:
        nvml.nvmlShutdown()
