"""`nst-bench export`: the forms of a graph on the engines at hand, on a CPU and on a fake card."""

from typing import Any

import pytest

from nst_bench.machine import description
from nst_bench.report import markdown
from nst_bench.suite import Context
from nst_bench.suites import export as suite
from nst_core import devices
from nst_core.devices import Device, Gpu
from nst_export.verification.agreement import Tolerance
from nst_export.verification.cpu import installed_providers
from nst_export.verification.gpu import GPU_TOLERANCES

MACHINE = {"processor": "p", "cores": 2, "memory_gib": 4, "gpu": None, "system": "s", "versions": {}}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates are measured in seconds; they are not what is tested here."""
    monkeypatch.setattr(description, "describe", lambda: MACHINE | {"matrix_product_gflops": 1})


def forms(document: dict[str, Any], engine: str) -> set[str]:
    return {row["form"] for row in document["rows"] if row["engine"] == engine}


def test_a_cpu_measures_its_engines_and_says_why_not_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: ([], "no NVIDIA GPU (NVML: not found)"))
    effort = suite.ExportEffort(widths=(0.125,), sizes=(64,), rounds=1)
    document = suite.SUITE.run(Context(devices.choose(), effort))
    for engine in installed_providers():
        assert forms(document, engine) == set(suite.CPU_FORMS)
    missing = {row["engine"]: row["missing"] for row in document["rows"] if "missing" in row}
    assert missing == dict.fromkeys(("TensorRT", "ONNX Runtime CUDA"), "no NVIDIA GPU (NVML: not found)")
    shown = markdown(document)
    assert "| engine | network | width | size | plain |" in shown
    assert "Not measured: TensorRT, TensorRT rewrites: no NVIDIA GPU" in shown


def test_a_card_measures_every_form_that_passes_its_gate(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT is the fake one; ONNX Runtime has no CUDA here, which the result says."""
    document = suite.SUITE.run(Context(Device("gpu", "a card", gpu), suite.ExportEffort(sizes=(64, 128), rounds=1)))
    assert forms(document, "TensorRT") == set(suite.TENSORRT_FORMS)
    rows = [row for row in document["rows"] if row["engine"] == "TensorRT"]
    assert len(rows) == 2 * len(suite.TENSORRT_FORMS)
    assert {row["precision"] for row in rows} == {"fp16"}
    assert {row["ratio"] for row in rows if row["form"] == "for TensorRT"} == {1.0}
    (other,) = [row for row in document["rows"] if row["engine"] == "ONNX Runtime CUDA"]
    assert "has no CUDAExecutionProvider" in other["missing"]
    assert "its times are relative to *TensorRT rewrites*" in markdown(document)


def test_a_form_that_fails_on_the_card_is_a_row_with_the_reason(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GPU_TOLERANCES, "fp16", Tolerance(-1))
    document = suite.SUITE.run(Context(Device("gpu", "a card", gpu), suite.ExportEffort(sizes=(64,), rounds=1)))
    rows = [row for row in document["rows"] if row["engine"] == "TensorRT"]
    assert len(rows) == len(suite.TENSORRT_FORMS)
    assert all("differs from PyTorch" in row["missing"] for row in rows)
    assert "Not measured: " in markdown(document)
