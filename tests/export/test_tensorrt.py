"""TensorRT's real parser and builder, on a machine without a GPU; running is for tests marked `gpu`."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from nst_core import devices
from nst_core.devices import Gpu
from nst_core.engines.plans import Profile
from nst_core.errors import InputError
from nst_export.errors import ExportError
from nst_export.export_plan import ExportPlan
from nst_export.gpu_engine import GpuEngine
from nst_export.graph.half_precision import to_half
from nst_export.graph.rewrites import DEFAULT_REWRITES, apply_rewrites
from nst_export.tensorrt import (
    build_rtx_engine,
    compute_capabilities,
    compute_capability_name,
    import_tensorrt,
    parse_shapes,
    require_gpu,
)
from nst_export.verification.gpu import GPU_TOLERANCES, tensorrt_engine, verify_on_gpu

from .conftest import MODELS, Exported

Exports = Callable[[str], Exported]

PROFILE = Profile.parse("64x64/256x256/2x512x512")

FROM_ONE_PIXEL = Profile.parse("1x1/256x256/2x512x512")


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
@pytest.mark.parametrize("name", MODELS)
def test_every_network_is_built_in_both_precisions(exported: Exports, tmp_path: Path, name: str, kind: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    model = exported(name)
    proto = onnx.load(model.path)
    apply_rewrites(proto, DEFAULT_REWRITES["tensorrt"])
    if kind == "fp16":
        to_half(proto)
    onnx.save(proto, tmp_path / "model.onnx")
    engine = build_rtx_engine(tmp_path / "model.onnx", PROFILE, model.module.network.multiple, ["SM89", "SM120"])
    assert len(engine) > 100_000


@pytest.mark.parametrize("name", ["fast", "ulyanov"])
def test_an_engine_may_take_smaller_images_than_the_network(exported: Exports, tmp_path: Path, name: str) -> None:
    """The graph enlarges them."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    model = exported(name)
    proto = onnx.load(model.path)
    apply_rewrites(proto, DEFAULT_REWRITES["tensorrt"])
    onnx.save(proto, tmp_path / "model.onnx")
    assert build_rtx_engine(tmp_path / "model.onnx", FROM_ONE_PIXEL, model.module.network.multiple, ["SM89"])


@pytest.mark.parametrize("norm", ["group-norm", "decomposed-norm"])
def test_every_form_of_the_normalization_is_built(exported: Exports, tmp_path: Path, norm: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    proto = onnx.load(exported("several").path)
    apply_rewrites(proto, (*DEFAULT_REWRITES["tensorrt"], norm))
    to_half(proto)
    onnx.save(proto, tmp_path / "model.onnx")
    assert build_rtx_engine(tmp_path / "model.onnx", PROFILE, 4, ["SM89"])


def test_a_graph_that_it_cannot_build_gives_its_own_words(tmp_path: Path) -> None:
    """An image beside a constant of one size, where the profile has others."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, "H", "W", channels])
        for name, channels in (("image", 3), ("stylized", 6))
    ]
    small = onnx.numpy_helper.from_array(np.zeros((1, 5, 5, 3), np.float32), "small")
    node = onnx.helper.make_node("Concat", ["image", "small"], ["stylized"], axis=3)
    graph = onnx.helper.make_graph([node], "joined", values[:1], values[1:], [small])
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), tmp_path / "joined.onnx")
    with pytest.raises(ExportError, match=r"could not build a plan: .*[Cc]oncat"):
        build_rtx_engine(tmp_path / "joined.onnx", PROFILE, 4, ["SM89"])
    (tmp_path / "no.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="cannot read the graph"):
        build_rtx_engine(tmp_path / "no.onnx", PROFILE, 4, ["SM89"])


@pytest.mark.parametrize(
    "text", ["", "256x256", "64x64/32x32/512x512", "64/64/64", "64x64/a/512x512", "0x64/64x64/64x64", "-1x2/3x4/5x6"]
)
def test_shapes_that_make_no_sense(text: str) -> None:
    with pytest.raises(InputError, match="--shapes"):
        parse_shapes(text)


def test_a_package_that_is_missing_is_named_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for target, words in (("tensorrt", r"pip install .*\[gpu"), ("tensorrt-rtx", r"pip install .*\[tensorrt\]")):
        monkeypatch.setitem(sys.modules, target.replace("-", "_"), None)
        with pytest.raises(ExportError, match=words):
            import_tensorrt(target)


def test_gpus_are_named_by_compute_capability() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    assert compute_capabilities("8.9,12.0") == ["SM89", "SM120"]
    assert {"SM75", "SM89", "SM120"} <= set(compute_capabilities(None))
    with pytest.raises(InputError, match=r"'50'.*supports 7\.5"):
        compute_capabilities("5.0")


def test_an_engine_for_other_gpus_is_not_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a data centre's GPU, which TensorRT-RTX does not know: built for others, not run, and the result says so.

    What the driver says of the GPU is put in its place: machines that run the tests have none.
    """
    gpu = Gpu(0, "H100", "GPU-0", "9.0", 80 << 30, "580.1", (13, 0))
    monkeypatch.setattr(devices, "gpus", lambda: ([gpu], ""))
    others, own = (
        GpuEngine(ExportPlan("tensorrt-rtx", runtime="tensorrt", compute_capabilities=names))
        for names in (("SM89", "SM120"), ("SM89", "SM90"))
    )
    assert others.why_not_run() == "it is not for this machine's GPU (H100, SM90)"
    assert own.why_not_run() is None
    assert compute_capability_name(gpu) == "SM90"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["johnson", "several", "ulyanov", "texture"])
def test_an_engine_of_tensorrt_rtx_runs_and_agrees(exported: Exports, tmp_path: Path, name: str, kind: str) -> None:
    """On the GPU at hand; `test_gpu.py` has the same for TensorRT itself."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    gpu = require_gpu()
    own = compute_capability_name(gpu)
    if own not in compute_capabilities(None):
        pytest.skip(f"TensorRT for RTX does not run on {gpu.name} ({own})")
    model = exported(name)
    proto = onnx.load(model.path)
    apply_rewrites(proto, DEFAULT_REWRITES["tensorrt"])
    if kind == "fp16":
        to_half(proto)
    onnx.save(proto, tmp_path / "model.onnx")
    network = model.module.network
    built = build_rtx_engine(tmp_path / "model.onnx", PROFILE, network.multiple, [own])
    with tensorrt_engine(built, "tensorrt-rtx", gpu) as engine:
        verify_on_gpu(engine, model.path, PROFILE, network.multiple, GPU_TOLERANCES[kind], styles=network.styles)
