"""Engines on a GPU: fakes of CUDA and TensorRT where there is no GPU, and the real engines where there is."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nst_bench.engines.base import MissingEngine, Stylize
from nst_bench.engines.baseline import Baseline
from nst_bench.engines.registry import OTHER_DEVICE, every_engine
from nst_bench.engines.runtimes import TENSORRT_CONTEXTS, onnx_runtime_cuda, tensorrt_plan
from nst_bench.machine.gpu import why_no_cuda
from nst_bench.photographs import sample_photograph
from nst_bench.served.exported import ExportedModel, default_export_plan
from nst_bench.suite import Context, Document
from nst_bench.suites import latency
from nst_core import devices
from nst_core.devices import Device, Gpu
from nst_export.export_plan import ExportPlan
from nst_export.pipeline import export_and_publish
from nst_trainer.checkpoint import Checkpoint, frozen, save
from nst_trainer.networks import Johnson

from ..fakes import FakeGpu, fake_gpu


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.manual_seed(3)
    return Checkpoint(frozen(Johnson(width=0.125, styles=2)), ("a", "b"))


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    """A model of two styles for TensorRT, whose plan nobody has built."""
    folder = tmp_path_factory.mktemp("gpu")
    save(checkpoint, folder / "two.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "gpus", lambda: ([], "no NVIDIA GPU (for this test)"))
        export_and_publish(folder / "two.pth", "two", folder, ExportPlan(runtime="tensorrt", precision="fp32", cores=2))
    return ExportedModel(folder / "two")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """A machine whose driver has the fake GPU; plans go into a folder of the test."""
    monkeypatch.setenv("NST_CACHE", str(tmp_path / "cache"))
    with fake_gpu() as found:
        own = Gpu(0, found.tensorrt.GPU, "GPU-1", "9.0", 1 << 30, "580.0", (13, 0))
        monkeypatch.setattr(devices, "gpus", lambda: ([own], ""))
        yield found


def test_a_bare_tensorrt_engine_stylizes_as_the_network_does(
    fake: FakeGpu, exported: ExportedModel, checkpoint: Checkpoint
) -> None:
    assert exported.device == "GPU" and exported.styles == ("a", "b")
    bare = Baseline(exported.folder)
    assert (bare.provider, bare.threads, len(bare.sessions)) == ("TensorRT", None, TENSORRT_CONTEXTS)
    reference = on_cpu(checkpoint, exported)
    for size in ((64, 64), (61, 83)):
        pixels = sample_photograph(*size)
        assert np.abs(bare.stylize(pixels).astype(int) - reference(pixels).astype(int)).max() <= 1
    assert bare.seconds_for(sample_photograph(64, 64), 5) > 0
    assert fake.tensorrt.counts["builds"] == 1, "the plan is built once, and then in the cache"
    tensorrt_plan(exported)
    assert fake.tensorrt.counts["builds"] == 1


def test_a_model_for_a_gpu_says_why_it_does_not_run_here(
    exported: ExportedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: ([], "no NVIDIA GPU (for this test)"))
    for load in (lambda: Baseline(exported.folder), lambda: onnx_runtime_cuda(Path("none.onnx"), 2)):
        with pytest.raises(MissingEngine, match=r"^no NVIDIA GPU \(for this test\)$"):
            load()


def test_a_model_that_is_not_for_tensorrt_has_no_plan(
    fake: FakeGpu, exported: ExportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = (exported.folder / "config.pbtxt").read_text()
    (tmp_path / "two" / "1").mkdir(parents=True)
    (tmp_path / "two" / "1" / "model.onnx").write_bytes((exported.version / "model.onnx").read_bytes())
    (tmp_path / "two" / "config.pbtxt").write_text(config.replace('backend: "tensorrt"', 'backend: "onnxruntime"'))
    with pytest.raises(MissingEngine, match="two is not exported for TensorRT; run nst export --for tensorrt"):
        tensorrt_plan(ExportedModel(tmp_path / "two"))
    with pytest.raises(MissingEngine, match="has no CUDAExecutionProvider"):
        Baseline(tmp_path / "two")
    (tmp_path / "two" / "config.pbtxt").write_text(config.replace("16x16/", "16/"))
    with pytest.raises(MissingEngine, match="16/"):
        tensorrt_plan(ExportedModel(tmp_path / "two"))


def test_a_run_has_the_engines_of_its_device_and_the_others_say_why(
    exported: ExportedModel, checkpoint: Checkpoint, card: Device, cpu: Device
) -> None:
    for device, kind, reason in ((card, "CPU", OTHER_DEVICE), (cpu, "GPU", cpu.reason)):
        others = [engine for engine in every_engine(checkpoint.network, exported, device) if engine.device == kind]
        assert len(others) >= 4
        for engine in others:
            with pytest.raises(MissingEngine) as found:
                engine.load()
            assert str(found.value) == reason
    names = {engine.name for engine in every_engine(checkpoint.network, exported, card) if engine.device == "GPU"}
    assert {"PyTorch, CUDA graph, FP16", "ONNX Runtime, CUDA, FP32", "TensorRT, FP32"} <= names


def test_a_run_on_a_gpu_has_its_rows_or_reasons(
    fake: FakeGpu,
    exported: ExportedModel,
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    measured: Callable[..., Document],
) -> None:
    """All but the server, on the fake GPU, which PyTorch and ONNX Runtime cannot use."""
    device = devices.choose("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    served: Any = SimpleNamespace(exported=exported, model="two", style="a", ways=lambda stack: {})
    context = Context(device, latency.LatencyEffort((64,), 0.1, compiled=()))
    document = measured(latency.SUITE, context, checkpoint, served)
    steady = {(row["engine"], row["device"]): row for row in document["rows"] if row["phase"] == "steady"}
    row = steady["TensorRT, FP32", "GPU"]
    assert (
        row["n"] >= latency.FEWEST_ROUNDS
        and row["max_difference"] <= 1
        and row["gflop"] > 0
        and "share_of_matrix_rate" not in row
    )
    reasons = {engine: row["missing"] for (engine, kind), row in steady.items() if kind == "GPU" and "missing" in row}
    assert reasons["PyTorch eager"] == reasons["PyTorch, CUDA graph, FP16"] == why_no_cuda()
    assert "has no CUDAExecutionProvider" in reasons["ONNX Runtime, CUDA, FP32"]
    assert "torch.compile takes half a minute per shape" in reasons["PyTorch compiled"]
    assert "install PyTorch for CUDA" in reasons[latency.CUDA_SHARED_MEMORY]
    assert {row["missing"] for (_, kind), row in steady.items() if kind == "CPU"} == {OTHER_DEVICE}


def test_an_untrained_network_is_exported_for_the_device(card: Device, cpu: Device) -> None:
    assert [default_export_plan(device).runtime for device in (card, cpu)] == ["tensorrt", "cpu"]


@pytest.mark.gpu
def test_every_engine_of_the_gpu_stylizes_as_the_cpu_does(
    exported: ExportedModel, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice each size, in turn: graphs and sessions are used again. What is not installed says so."""
    monkeypatch.setenv("NST_CACHE", str(tmp_path / "cache"))
    device = devices.choose("gpu")
    reference = on_cpu(checkpoint, exported)
    stylized = 0
    for engine in every_engine(checkpoint.network, exported, device):
        if engine.device == "CPU" or engine.compiles:
            continue
        try:
            stylize = engine.load()
        except MissingEngine as error:
            print(f"{engine.name}: {error}")
            continue
        for size in ((64, 64), (61, 83), (64, 64), (61, 83)):
            pixels = sample_photograph(*size)
            difference = np.abs(stylize(pixels).astype(int) - reference(pixels).astype(int))
            assert difference.mean() < 1.0, (engine.name, size)
        stylized += 1
    assert stylized >= 2


def on_cpu(checkpoint: Checkpoint, exported: ExportedModel) -> Stylize:
    """PyTorch on the processor."""
    return every_engine(checkpoint.network, exported, Device("cpu", "for this test"))[0].load()
