"""The packages that hold the module `onnxruntime`: one is used, none and two are errors with a way out."""

import importlib
import os
from importlib.metadata import PackageNotFoundError

import pytest

from nst_core import devices
from nst_core.devices import Gpu
from nst_core.distribution import install_command
from nst_core.errors import InputError, MissingExtra
from nst_core.packages import onnx_runtime
from nst_core.packages.onnx_runtime import import_onnxruntime


def on_a_card(monkeypatch: pytest.MonkeyPatch, cuda: tuple[int, int]) -> None:
    gpu = Gpu(0, "A", "GPU-0", "8.0", 1, "580", cuda)
    monkeypatch.setattr(devices, "gpus", lambda: ([gpu], ""))


def with_packages(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def version(name: str) -> str:
        if name not in names:
            raise PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(onnx_runtime, "version", version)


def test_the_package_of_this_environment_is_used() -> None:
    (name,) = onnx_runtime.installed(onnx_runtime.DISTRIBUTIONS)
    assert name.startswith("onnxruntime")
    assert "CPUExecutionProvider" in import_onnxruntime().get_available_providers()


@pytest.mark.parametrize(("provider", "card", "times"), [("CUDA", True, 1), ("CUDA", False, 0), ("CPU", True, 0)])
def test_cuda_and_cudnn_are_found_where_a_gpu_will_use_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], provider: str, card: bool, times: int
) -> None:
    module = importlib.import_module("onnxruntime")
    monkeypatch.setattr(module, "get_available_providers", lambda: [f"{provider}ExecutionProvider"])
    monkeypatch.setattr(module, "preload_dlls", lambda: print("libcudnn.so.9 is missing"))
    if card:
        on_a_card(monkeypatch, (13, 0))
    else:
        monkeypatch.setattr(devices, "gpus", lambda: ([], "no NVIDIA GPU"))
    import_onnxruntime()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("libcudnn") == times


def test_onnx_runtime_starts_without_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    at_start: list[str] = []
    module = importlib.import_module("onnxruntime")
    monkeypatch.setattr(
        module, "disable_telemetry_events", lambda: at_start.append(os.environ["ORT_DISABLE_TELEMETRY"])
    )
    import_onnxruntime()
    assert at_start == ["1"] and "ORT_DISABLE_TELEMETRY" not in os.environ


def test_two_packages_are_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with_packages(monkeypatch, "onnxruntime-gpu", "onnxruntime-openvino")
    on_a_card(monkeypatch, (13, 0))
    with pytest.raises(InputError, match="are installed together") as error:
        import_onnxruntime()
    assert f"pip uninstall -y onnxruntime-gpu onnxruntime-openvino, then {install_command('gpu')}" in str(error.value)


@pytest.mark.parametrize(("cuda", "extra"), [(None, "local"), ((13, 1), "gpu"), ((12, 4), "gpu-cu12")])
def test_none_is_an_error_that_names_the_extra_for_the_machine(
    monkeypatch: pytest.MonkeyPatch, cuda: tuple[int, int] | None, extra: str
) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    with_packages(monkeypatch)
    if cuda is None:
        monkeypatch.setattr(devices, "gpus", lambda: ([], "no NVIDIA GPU"))
    else:
        on_a_card(monkeypatch, cuda)
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtra) as error:
        import_onnxruntime("local")
    assert str(error.value) == f"the package 'onnxruntime' is not installed; run {install_command(extra)}"
