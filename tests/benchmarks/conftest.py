"""A processor and a GPU as a run chooses them; the GPU's driver is a fake one with an energy counter.

`measured` runs a suite without measuring the machine's own rates, which takes seconds.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from nst_bench.machine import description
from nst_bench.suite import Context, Document, Suite
from nst_core.devices import Device, Gpu

H100 = Gpu(0, "NVIDIA H100 80GB HBM3", "GPU-7", "9.0", 80 << 30, "580.159.04", (13, 0))


class NVMLError(Exception):
    pass


class Driver(ModuleType):
    """NVML's functions that the benchmarks call. `works` lets the card draw power; `refuses` names functions."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.used, self.opened = 5000.0, 0
        self.refuses: set[str] = set()
        known: dict[str, Callable[..., int]] = {
            "nvmlDeviceGetTotalEnergyConsumption": lambda: round(1000 * self.used),
            "nvmlDeviceGetClockInfo": lambda clock: 1980 if clock == 1 else 2619,
            "nvmlDeviceGetMaxClockInfo": lambda clock: 1980,
            "nvmlDeviceGetEnforcedPowerLimit": lambda: 700_000,
            "nvmlDeviceGetTemperature": lambda sensor: 41,
        }
        vars(self).update({name: partial(self._ask, name, answer) for name, answer in known.items()})
        vars(self).update(NVMLError=NVMLError, NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2, NVML_TEMPERATURE_GPU=0)
        vars(self).update(nvmlInit=partial(self._open, 1), nvmlShutdown=partial(self._open, -1))
        vars(self).update(nvmlDeviceGetHandleByUUID=lambda uuid: uuid)

    def works(self, seconds: float, watts: float) -> None:
        """So much is drawn for `seconds`."""
        self.used += seconds * watts

    def _open(self, more: int) -> None:
        self.opened += more

    def _ask(self, name: str, answer: Callable[..., int], handle: str, *about: int) -> int:
        assert handle == H100.uuid and self.opened == 1
        if name in self.refuses:
            raise NVMLError("Not Supported")
        return answer(*about)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", found)
    return found


MACHINE = {"processor": "A Chip", "cores": 2, "memory_gib": 4.0, "gpu": None, "system": "S", "versions": {"nst": "0"}}
MACHINE |= {"matrix_product_gflops": 100.0, "memory_gbs": 10.0, "cuda": {"unmeasured": "a fake"}}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Document]:
    """The document of a suite, with resources that the test has opened if it gives some."""
    monkeypatch.setattr(description, "describe", lambda: MACHINE)

    def run(suite: Suite[Any], context: Context[Any], *resources: Any, **options: Any) -> Document:
        if resources:
            suite = replace(suite, resources=lambda context: nullcontext(resources))
        return suite.run(context, **options)

    return run


@pytest.fixture(scope="session")
def cpu() -> Device:
    return Device("cpu", "no NVIDIA GPU (for this test)")


@pytest.fixture(scope="session")
def card() -> Device:
    return Device("gpu", "NVIDIA H100 80GB HBM3 (compute capability 9.0)", H100)
