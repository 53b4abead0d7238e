"""Which device is chosen, and the reason that is given; the driver's library is a fake with NVML's names."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from nst_core import devices
from nst_core.errors import InputError


class NVMLError(Exception):
    pass


def fake_nvml(*names: str, broken: str | None = None, as_bytes: bool = False) -> ModuleType:
    def text(value: str) -> str | bytes:
        return value.encode() if as_bytes else value

    def init() -> None:
        if broken == "init":
            raise NVMLError("Driver Not Loaded")

    def count() -> int:
        if broken == "count":
            raise NVMLError("GPU is lost")
        return len(names)

    nvml = ModuleType("pynvml")
    vars(nvml).update(
        NVMLError=NVMLError,
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=count,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda index: text(names[index]),
        nvmlDeviceGetUUID=lambda index: text(f"GPU-{index}abc-def"),
        nvmlDeviceGetCudaComputeCapability=lambda index: (9, index),
        nvmlDeviceGetMemoryInfo=lambda index: SimpleNamespace(total=80 << 30),
        nvmlSystemGetDriverVersion=lambda: text("580.159.04"),
        nvmlSystemGetCudaDriverVersion=lambda: 13020,
    )
    return nvml


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


@pytest.mark.parametrize("as_bytes", [False, True])
def test_auto_takes_the_first_gpu_and_says_which(machine: pytest.MonkeyPatch, as_bytes: bool) -> None:
    machine.setitem(sys.modules, "pynvml", fake_nvml("NVIDIA H100 80GB HBM3", "NVIDIA L4", as_bytes=as_bytes))
    device = devices.choose("auto")
    assert str(device) == "gpu: NVIDIA H100 80GB HBM3 (compute capability 9.0)"
    assert device.gpu == devices.Gpu(0, "NVIDIA H100 80GB HBM3", "GPU-0abc-def", "9.0", 80 << 30, "580.159.04", (13, 2))


@pytest.mark.parametrize(
    ("nvml", "reason"),
    [
        (fake_nvml(broken="init"), "no NVIDIA GPU (NVML: Driver Not Loaded)"),
        (fake_nvml("NVIDIA L4", broken="count"), "the NVIDIA driver does not respond (NVML: GPU is lost)"),
        (fake_nvml(), "the NVIDIA driver reports no GPU"),
    ],
)
def test_without_a_gpu_auto_says_why_and_gpu_is_refused(
    machine: pytest.MonkeyPatch, nvml: ModuleType, reason: str
) -> None:
    machine.setitem(sys.modules, "pynvml", nvml)
    assert devices.choose("auto") == devices.Device("cpu", reason)
    with pytest.raises(InputError) as caught:
        devices.choose("gpu")
    assert reason in str(caught.value)
    assert "--device cpu" in str(caught.value)


def test_cpu_asks_no_driver(machine: pytest.MonkeyPatch) -> None:
    machine.setitem(sys.modules, "pynvml", fake_nvml("NVIDIA L4", broken="init"))
    assert devices.choose("cpu") == devices.Device("cpu", "chosen with --device cpu")


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        ("1", [1]),
        ("1,0", [1, 0]),
        ("GPU-1abc", [1]),
        ("0, 1", [0, 1]),
        ("0,7,1", [0]),  # CUDA stops at the first that does not exist
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices_is_followed(machine: pytest.MonkeyPatch, visible: str, indices: list[int]) -> None:
    machine.setitem(sys.modules, "pynvml", fake_nvml("NVIDIA L4", "NVIDIA T4"))
    machine.setenv("CUDA_VISIBLE_DEVICES", visible)
    found, missing = devices.gpus()
    assert [gpu.index for gpu in found] == indices
    assert (missing == "") == bool(indices)
    if not indices:
        assert repr(visible) in missing


def test_the_real_library_has_what_is_asked_of_it() -> None:
    import pynvml

    assert [name for name in vars(fake_nvml()) if name.startswith("nvml") and not hasattr(pynvml, name)] == []


@pytest.mark.gpu
def test_the_gpu_of_this_machine_is_described() -> None:
    device = devices.choose("gpu")
    assert device.gpu is not None
    assert device.gpu.memory > 1 << 30
    assert device.gpu.cuda >= (12, 0)
