"""TensorRT's real parser and builder, on a machine without a GPU; running is for tests marked `gpu`."""

import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from nst_core.errors import InputError
from nst_export import precision, tensorrt
from nst_export.errors import ExportError
from nst_export.rewrite import FOR, rewrite
from nst_export.tensorrt import Profile

from .conftest import MODELS, Exported

Exports = Callable[[str], Exported]

PROFILE = Profile.parse("64x64/256x256/2x512x512")


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
@pytest.mark.parametrize("name", MODELS)
def test_every_network_is_built_in_both_precisions(exported: Exports, tmp_path: Path, name: str, kind: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    one = exported(name)
    proto = onnx.load(one.path)
    rewrite(proto, FOR["tensorrt"])
    if kind == "fp16":
        precision.to_half(proto)
    onnx.save(proto, tmp_path / "model.onnx")
    grid = one.model.network.multiple
    engine, about = tensorrt.build(
        *(tmp_path / "model.onnx", "tensorrt-rtx", PROFILE, grid), devices=["SM89", "SM120"], cache=tmp_path
    )
    assert len(engine) > 100_000
    assert about["compute_capabilities"] == ["SM89", "SM120"]
    assert ("HALF" in about["results"]) is (kind == "fp16")
    names = [spec.name for spec in (*one.model.inputs, one.model.output)]
    assert [tensor.split()[0] for tensor in about["tensors"]] == names


def test_a_graph_that_it_cannot_build_gives_its_own_words(exported: Exports, tmp_path: Path) -> None:
    """A Resize of dynamic sides, which the rewrites for TensorRT take away."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    with pytest.raises(ExportError, match=r"(?s)could not build an engine: .*shape inference"):
        tensorrt.build(*(exported("johnson").path, "tensorrt-rtx", PROFILE, 4), devices=["SM89"], cache=tmp_path)
    (tmp_path / "no.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="cannot read the exported graph"):
        tensorrt.build(tmp_path / "no.onnx", "tensorrt-rtx", PROFILE, 4, devices=["SM89"], cache=tmp_path)


def test_shapes_are_minimum_optimum_and_maximum() -> None:
    profile = Profile.parse("64x64/2x256x320/4x512x512")
    assert profile.all == ((1, 64, 64), (2, 256, 320), (4, 512, 512))
    assert profile.shapes(("N", "H", "W", 3), 4) == [(1, 64, 64, 3), (2, 256, 320, 3), (4, 512, 512, 3)]
    assert profile.shapes(("N", "2h", "2w", 3), 16)[1] == (2, 32, 40, 3)
    assert profile.holds((9, 17, 400)) == (4, 64, 400)


@pytest.mark.parametrize(
    "text", ["", "256x256", "64x64/32x32/512x512", "64/64/64", "64x64/a/512x512", "0x64/64x64/64x64", "-1x2/3x4/5x6"]
)
def test_shapes_that_make_no_sense(text: str) -> None:
    with pytest.raises(InputError, match="--shapes"):
        Profile.parse(text)


def test_a_package_that_is_missing_is_named_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for target, words in (("tensorrt", "NVIDIA's package index"), ("tensorrt-rtx", r"nst\[tensorrt\]")):
        monkeypatch.setitem(sys.modules, target.replace("-", "_"), None)
        with pytest.raises(ExportError, match=words):
            tensorrt.library(target)


def test_gpus_are_named_by_compute_capability() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    assert tensorrt.capabilities("8.9,12.0") == ["SM89", "SM120"]
    assert {"SM75", "SM89", "SM120"} <= set(tensorrt.capabilities(None))
    with pytest.raises(InputError, match=r"'50'.*knows 7\.5"):
        tensorrt.capabilities("5.0")


def test_an_engine_for_other_gpus_is_not_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a data centre's GPU, which TensorRT-RTX does not know: built for others, and said to be not run.

    What PyTorch says of the GPU is put in its place: machines that run the tests have none.
    """
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    assert tensorrt.cannot_run(["SM89", "SM120"]) == "it is not for this machine's GPU (H100, SM90)"
    assert tensorrt.cannot_run(["SM89", "SM90"]) is None
    assert tensorrt.cannot_run() is None


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["johnson", "several", "ulyanov", "texture"])
def test_an_engine_runs_and_agrees_on_the_gpu(exported: Exports, tmp_path: Path, name: str, kind: str) -> None:
    """On the GPU at hand, with whichever of the two libraries is installed."""
    from nst_export.exporter import _against_reference
    from nst_export.verify import LIMITS

    found = [one for one in ("tensorrt", "tensorrt_rtx") if _importable(one)]
    if not found:
        pytest.skip("neither TensorRT nor TensorRT-RTX is installed")
    target = found[0].replace("_", "-")
    one = exported(name)
    proto = onnx.load(one.path)
    rewrite(proto, FOR["tensorrt"])
    if kind == "fp16":
        precision.to_half(proto)
    onnx.save(proto, tmp_path / "model.onnx")
    grid = one.model.network.multiple
    devices = []
    if target == "tensorrt-rtx":
        devices = [tensorrt.own_capability()]
        if devices[0] not in tensorrt.capabilities(None):
            pytest.skip(
                f"TensorRT for RTX does not run on {torch.cuda.get_device_name()} ({devices[0]}); "
                "with the package tensorrt, from NVIDIA's index, this test runs"
            )
    engine, _ = tensorrt.build(tmp_path / "model.onnx", target, PROFILE, grid, devices=devices, cache=tmp_path)
    agreements = _against_reference(engine, target, PROFILE, one.path, grid, LIMITS[kind])
    assert len(agreements) >= 5


def _importable(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True
