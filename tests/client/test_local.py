"""`local:` opens each model on what it was exported for. The engines have tests of their own; here they are played."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nst_client.transports.local
from nst_client import Rejected, ServiceError, StyleClient
from nst_client.transports.base import Request
from nst_client.transports.local import LocalTransport
from nst_core.devices import Gpu
from nst_core.engines import building, onnx_cuda, plans, tensorrt
from nst_core.errors import InputError, MissingExtra
from nst_core.images import Pixels

H100 = Gpu(0, "NVIDIA H100 80GB HBM3", "GPU-1", "9.0", 80 * 2**30, "580.1", (13, 0))

ONNX = 'backend: "onnxruntime" parameters { key: "styles" value { string_value: "wave" } }'
TENSORRT = """backend: "tensorrt" max_batch_size: 4 parameters { key: "styles" value { string_value: "wave" } }
parameters { key: "profile" value { string_value: "16x16/512x512/4x1920x1920" } }
parameters { key: "multiple" value { string_value: "4" } }
parameters { key: "max_side" value { string_value: "1920" } }"""


def repository(folder: Path, config: str, kind: str) -> Path:
    (folder / "wave" / "1").mkdir(parents=True)
    (folder / "wave" / "1" / "model.onnx").write_bytes(b"a model")
    (folder / "wave" / "config.pbtxt").write_text(f'name: "wave" instance_group {{ kind: {kind} }} {config}')
    return folder


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nst_client.transports.local, "gpus", lambda: ([H100], ""))


def run(local: LocalTransport, size: int = 8) -> Pixels:
    return asyncio.run(local.infer(Request("wave", {"image": np.zeros((1, size, size, 3), np.uint8)}, "stylized"), 1.0))


class Engines:
    """What was opened, closed and run, as words."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, local: LocalTransport, providers: list[str]) -> None:
        self.calls: list[str] = []
        calls = self.calls

        class Session:
            def __init__(self, path: str, options: object, providers: list[tuple[str, object]]) -> None:
                calls.append(f"session {providers[0][0]}")

            def run(self, outputs: list[str], inputs: dict[str, Pixels]) -> list[Pixels]:
                if inputs["image"].shape[1] > 100:
                    raise RuntimeError("out of memory")
                return [255 - inputs["image"]]

        class Sessions:
            def __init__(self, path: Path, session_options: Any) -> None:
                calls.append(f"CUDA {path.name}")

            def run(self, feeds: Mapping[str, Pixels], outputs: Sequence[str]) -> list[Pixels]:
                if feeds["image"].shape[1] > 100:
                    raise RuntimeError("out of memory")
                return [255 - feeds["image"]]

            def close(self) -> None:
                calls.append("closed")

        class Plan:
            def __init__(self, plan: Path) -> None:
                calls.append(f"plan {plan.name}")

            def run(self, feeds: Mapping[str, Pixels], out: Pixels | None = None) -> Pixels:
                assert out is not None
                np.subtract(255, feeds["image"], out)
                return out

            def close(self) -> None:
                calls.append("closed")

        monkeypatch.setattr(local.onnxruntime, "get_available_providers", lambda: providers)
        monkeypatch.setattr(local.onnxruntime, "InferenceSession", Session)
        monkeypatch.setattr(onnx_cuda, "CudaSessions", Sessions)
        monkeypatch.setattr(tensorrt, "TensorRTEngine", Plan)


def test_a_model_for_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: None) -> None:
    """On the CPU also where there is a GPU. A run that failed may spoil OpenVINO's session, so it is opened again."""
    local = LocalTransport(repository(tmp_path, ONNX, "KIND_CPU"))
    engines = Engines(monkeypatch, local, ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert not local.wants_gpu
    assert (run(local) == 255).all()
    with pytest.raises(Rejected, match="wave failed: out of memory"):
        run(local, 128)
    run(local)
    assert engines.calls == ["session CPUExecutionProvider"] * 2


def test_a_model_for_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: None) -> None:
    local = LocalTransport(repository(tmp_path, ONNX, "KIND_GPU"))
    engines = Engines(monkeypatch, local, ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert local.wants_gpu
    assert (run(local) == 255).all()
    with pytest.raises(Rejected, match="wave failed: out of memory"):
        run(local, 128)
    run(local)
    asyncio.run(local.close())
    assert engines.calls == ["CUDA model.onnx", "closed"]


def test_a_model_for_tensorrt_gets_its_plan_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, card: None
) -> None:
    asked: list[tuple[Any, ...]] = []

    def ensure(version: Path, profile: plans.Profile, multiple: int, **named: Any) -> Path:
        asked.append((version, str(profile), multiple, named["gpu"], named["compute_capability"]))
        for done in (0.0, 0.5):
            named["on_progress"](done, "building")
        return tmp_path / "cached.plan"

    monkeypatch.setattr(building, "ensure", ensure)
    monkeypatch.setattr(plans, "import_tensorrt", lambda: object())
    local = LocalTransport(repository(tmp_path, TENSORRT, "KIND_GPU"))
    engines = Engines(monkeypatch, local, ["CPUExecutionProvider"])
    with StyleClient(transport=local) as client, caplog.at_level(logging.WARNING):
        (style,) = client.styles()
        assert (style.max_side, style.max_batch) == (1920, 4)
        for _ in range(2):
            assert (client.stylize(np.zeros((20, 30, 3), np.uint8), "wave") == 255).all()
    assert asked == [(tmp_path / "wave" / "1", "16x16/512x512/4x1920x1920", 4, H100.name, "9.0")]
    assert engines.calls == ["plan cached.plan", "closed"]
    (record,) = caplog.records
    assert record.message.startswith(f"wave: building the TensorRT plan for {H100.name}, once")


def test_a_plan_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: None) -> None:
    def missing() -> Any:
        raise plans.PlanError("TensorRT cannot be used: pip install 'nst[gpu]'")

    monkeypatch.setattr(plans, "import_tensorrt", missing)
    local = LocalTransport(repository(tmp_path, TENSORRT, "KIND_GPU"))
    with pytest.raises(ServiceError, match=r"cannot load .*/wave/1: TensorRT cannot be used: pip install 'nst\[gpu\]'"):
        run(local)


def test_onnx_runtime_without_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: None) -> None:
    local = LocalTransport(repository(tmp_path, ONNX, "KIND_GPU"))
    Engines(monkeypatch, local, ["CPUExecutionProvider"])
    with pytest.raises(MissingExtra, match=r"onnxruntime-gpu.*\[gpu\]"):
        run(local)


@pytest.mark.parametrize("text", [b"", b'name: "torn', b"\xff\xfe", b"a b c\nd e f\n" * 99, None])
def test_a_config_that_cannot_be_read_keeps_nobody_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: bytes | None
) -> None:
    """It is named. (An empty file is a config of nothing.)"""
    local = LocalTransport(repository(tmp_path, ONNX, "KIND_CPU"))
    Engines(monkeypatch, local, ["CPUExecutionProvider"])
    bad = tmp_path / "torn" / "config.pbtxt"
    bad.parent.mkdir()
    if text is None:
        bad.symlink_to(tmp_path / "nowhere")
        bad.with_name("config.pbtxt").unlink()
        bad.mkdir()
    else:
        bad.write_bytes(text)
    assert not local.wants_gpu
    with StyleClient(transport=local) as client, caplog.at_level(logging.WARNING):
        assert [style.name for style in client.styles()] == ["wave"]
        assert (client.stylize(np.zeros((20, 20, 3), np.uint8), "wave") == 255).all()
        if text == b"":
            assert not caplog.records
            return
        (record,) = caplog.records
        assert f"skipping model torn: cannot read the model config {bad}" in record.getMessage()
        assert len(record.getMessage().splitlines()) == 1
        with pytest.raises(ServiceError, match=f"cannot read the model config {bad} .*; export the model again"):
            client.stylize(np.zeros((20, 20, 3), np.uint8), "torn")


def test_a_model_for_a_gpu_keeps_nobody_from_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nst_client.transports.local, "gpus", lambda: ([], "no NVIDIA GPU"))
    folder = repository(tmp_path, ONNX, "KIND_CPU")
    (tmp_path / "wave").rename(tmp_path / "calm")
    local = LocalTransport(repository(folder, ONNX, "KIND_GPU"))
    with StyleClient(transport=local) as client:
        assert [style.name for style in client.styles()] == ["calm"]
        with pytest.raises(InputError, match="wave needs an NVIDIA GPU"):
            client.stylize(np.zeros((20, 20, 3), np.uint8), "wave")


@pytest.mark.parametrize("missing", ["profile", "multiple"])
def test_a_config_that_lacks_what_tensorrt_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: None, missing: str
) -> None:
    monkeypatch.setattr(plans, "import_tensorrt", lambda: object())
    local = LocalTransport(repository(tmp_path, TENSORRT.replace(f'"{missing}"', '"other"'), "KIND_GPU"))
    with pytest.raises(ServiceError, match=f"cannot load .*/wave/1: its config lacks '{missing}'"):
        run(local)


@pytest.mark.parametrize("config", [ONNX, TENSORRT])
def test_a_model_for_a_gpu_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    """It never runs on the CPU without a word."""
    monkeypatch.setattr(nst_client.transports.local, "gpus", lambda: ([], "no NVIDIA GPU (NVML: none)"))
    local = LocalTransport(repository(tmp_path, config, "KIND_GPU"))
    words = (
        r"wave needs an NVIDIA GPU, which is missing here \(no NVIDIA GPU \(NVML: none\)\); "
        r"export it with nst export --device cpu, or call a server that has a GPU"
    )
    with StyleClient(transport=local) as client, pytest.raises(InputError, match=words):
        client.styles()
    with pytest.raises(InputError, match=words):
        run(local)
