"""The gate on the GPU and plans at export: on a fake card, whose plans hold the ONNX graph, and on a real card.

The fake runs everything of the exporter and of the engines; only CUDA, TensorRT and the driver are put in their place.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from nst_core import devices
from nst_core.devices import Gpu
from nst_core.distribution import install_command
from nst_core.engines import plans
from nst_core.engines.plans import Profile
from nst_export.errors import ExportError
from nst_export.export_plan import ExportPlan
from nst_export.graph.conversion import write_onnx
from nst_export.graph.half_precision import to_half
from nst_export.graph.rewrites import DEFAULT_REWRITES, apply_rewrites
from nst_export.pipeline import export_and_publish
from nst_export.tensorrt import build_plan, require_gpu
from nst_export.verification.agreement import TOLERANCES, Engine, Feeds, Tolerance, require_agreement
from nst_export.verification.cpu import onnx_engines, open_session
from nst_export.verification.examples import example_feeds
from nst_export.verification.gpu import (
    GPU_TOLERANCES,
    MAXIMUM_COMPARED_PIXELS,
    gpu_shapes,
    missing_packages,
    tensorrt_engine,
    verify_on_gpu,
)
from nst_export.verification.pytorch import run_pytorch
from nst_trainer.checkpoint import Checkpoint, save
from nst_trainer.networks import Fast

from .conftest import MODELS, Exported
from .test_commands import failed, run

Exports = Callable[[str], Exported]

PROFILE = Profile.parse("16x16/128x128/2x192x192")


@pytest.fixture
def two(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    save(Checkpoint(Fast(width=0.25, styles=2), ("x", "y")), tmp_path / "two.pth")
    return tmp_path / "two.pth"


def graph_for_tensorrt(model: Exported, path: Path, *, half: bool = False, names: tuple[str, ...] = ()) -> Path:
    """The file of a model as TensorRT gets it."""
    proto = onnx.load(model.path)
    apply_rewrites(proto, (*DEFAULT_REWRITES["tensorrt"], *names))
    if half:
        to_half(proto)
    write_onnx(proto, path, {})
    return path


def test_a_card_gets_a_plan_that_was_run_on_it(gpu: Gpu, tmp_path: Path, two: Path) -> None:
    result = run(two, "-r", tmp_path / "repo", "--shapes", str(PROFILE))
    assert result.exit_code == 0, result.output
    assert "device gpu: NVIDIA Fake GPU (compute capability 9.0)" in result.stderr
    folder = tmp_path / "repo" / "two" / "1"
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.onnx", "model.plan", "plan.json", "reference.onnx", "verification.json"}
    key = plans.key_of(folder / "model.onnx", PROFILE, gpu.name, gpu.compute_capability, "10.99.0.1")
    assert plans.find(folder, key) == folder / "model.plan"
    document = json.loads((folder / "verification.json").read_text())
    assert (document["target"], document["precision"]) == ("tensorrt", "fp16")
    assert document["engine"]["status"] == "verified with tensorrt on NVIDIA Fake GPU"
    on_card = {
        tuple(check["shape"]) for check in document["checks"] if check["engine"] == "tensorrt on NVIDIA Fake GPU"
    }
    assert on_card == {(1, 16, 16), (1, 16, 64), (1, 128, 128), (2, 192, 192), (1, 192, 192), (2, 128, 128)}


def test_the_same_graph_is_not_built_twice(gpu: Gpu, tmp_path: Path, two: Path) -> None:
    import tensorrt as fake  # the one of the fixture

    for _ in range(2):
        assert run(two, "-r", tmp_path / "repo", "--shapes", str(PROFILE)).exit_code == 0
    assert fake.counts["builds"] == 1
    assert (tmp_path / "repo" / "two" / "2" / "model.plan").is_file()


def test_an_engine_that_shifts_the_image_is_refused(
    gpu: Gpu, tmp_path: Path, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What TensorRT 10.15 did to a shuffle with a slice behind it: two pixels along x."""
    from nst_core.engines.tensorrt import TensorRTEngine

    right = TensorRTEngine.run
    monkeypatch.setattr(TensorRTEngine, "run", lambda self, feeds: np.roll(right(self, feeds), 2, axis=2))
    message = failed(two, "-r", tmp_path / "repo", "--shapes", str(PROFILE))
    assert "differs from its FP32 graph" in message
    assert "tensorrt on NVIDIA Fake GPU at 1x128x128" in message
    assert not (tmp_path / "repo").exists()


def test_a_plan_that_is_left_to_the_server_can_be_verified_later(tmp_path: Path, two: Path) -> None:
    """Exported without a card; then, in another process's place, with a card."""
    result = run(two, "-r", tmp_path / "repo", "--for", "tensorrt", "--shapes", str(PROFILE))
    assert result.exit_code == 0, result.output
    if not devices.gpus()[0]:
        folder = tmp_path / "repo" / "two" / "1"
        assert {path.name for path in folder.iterdir()} == {"model.onnx", "reference.onnx", "verification.json"}
        assert "nst serve builds it at its first start" in result.stderr
        assert "cannot run on this machine: no NVIDIA GPU" in failed("verify", folder)


def test_verify_builds_the_plan_in_the_cache_and_not_in_the_repository(
    gpu: Gpu, tmp_path: Path, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setattr(devices, "gpus", lambda: ([], "no NVIDIA GPU"))
        exported = run(two, "-r", tmp_path / "repo", "--for", "tensorrt", "--shapes", str(PROFILE))
    assert exported.exit_code == 0, exported.output
    folder = tmp_path / "repo" / "two" / "1"
    result = run("verify", folder)
    assert result.exit_code == 0, result.output
    assert not (folder / "model.plan").exists()
    assert list((tmp_path / "cache" / "plans").glob("*.plan"))
    document = json.loads((folder / "verification.json").read_text())
    assert document["engine"]["status"] == "verified with tensorrt on NVIDIA Fake GPU"
    assert "verified with tensorrt" in run("inspect", folder).stderr


def test_tensorrt_refusing_a_plan_is_one_line(gpu: Gpu) -> None:
    with (
        pytest.raises(ExportError, match="tensorrt failed on the GPU: "),
        tensorrt_engine(b"no plan", "tensorrt", gpu),
    ):
        pass


def test_a_driver_that_is_too_old_is_named(
    gpu: Gpu, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Gpu(0, "T4", "GPU-1", "7.5", 15 << 30, "550.54", (12, 4))
    monkeypatch.setattr(devices, "gpus", lambda: ([old], ""))
    message = failed(two, "-r", tmp_path / "repo", "--target", "tensorrt")
    assert "the driver 550.54 supports CUDA 12.4" in message
    assert install_command("gpu-cu12") in message


def test_onnx_runtime_without_cuda_is_named(gpu: Gpu, tmp_path: Path, two: Path) -> None:
    result = run(two, "-r", tmp_path / "repo", "--target", "onnx")
    assert result.exit_code == 0, result.output
    assert "has no CUDAExecutionProvider" in result.stderr
    document = json.loads((tmp_path / "repo" / "two" / "1" / "verification.json").read_text())
    assert document["for"] == "gpu"
    assert document["engine"]["status"].startswith("not run on a GPU: ONNX Runtime")


def test_shapes_that_the_gate_compares_are_within_the_profile_and_the_memory() -> None:
    inputs = MODELS["several"]().inputs
    profile = Profile.parse("16x16/512x512/8x4096x4096")
    chosen = gpu_shapes(profile, inputs, 4, styles=10)
    assert {(1, 16, 16), (1, 512, 512), (1, 333, 501), (1, 481, 271), (8, 512, 512)} <= set(chosen)
    assert (1, 2048, 2048) in chosen  # the maximum, as far as it is compared
    assert all(n * height * width <= MAXIMUM_COMPARED_PIXELS for n, height, width in chosen)
    assert all(profile.holds(shape) == shape for shape in chosen)
    assert sum(n for n, _, _ in chosen) >= 12


def test_a_profile_of_one_shape_is_compared_at_it() -> None:
    profile = Profile.parse("1x96x112/1x96x112/1x96x112")
    assert set(gpu_shapes(profile, MODELS["several"]().inputs, 4, styles=3)) == {(1, 96, 112)}
    assert len(gpu_shapes(profile, MODELS["several"]().inputs, 4, styles=3)) == 5  # three styles and interpolations


def test_every_style_and_an_interpolation_run_on_the_card(exported: Exports) -> None:
    seen: list[np.ndarray] = []
    model = exported("several")
    session = open_session(model.path, "CPUExecutionProvider")

    def stylize(feeds: Feeds) -> tuple[np.ndarray, None]:
        seen.extend(feeds["style_weights"])
        return session.run(None, feeds)[0], None

    verify_on_gpu(Engine("e", stylize), model.path, PROFILE, 4, Tolerance(0), styles=3)
    assert np.array_equal(np.stack(seen[:3]), np.eye(3, dtype=np.float32))
    assert any((row > 0).sum() == 3 for row in seen[3:])


def static(source: Path, shape: tuple[int, int, int], target: Path) -> Path:
    """A file whose axes are fixed: what somebody exports who wants one size."""
    proto = onnx.load(source)
    sizes = dict(zip(("N", "H", "W"), shape, strict=True))
    for value in (*proto.graph.input, *proto.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_value = sizes[axis.dim_param]
    del proto.graph.value_info[:]
    onnx.save(onnx.shape_inference.infer_shapes(proto, data_prop=True), target)
    return target


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 67, 93)])
@pytest.mark.parametrize("name", ["johnson", "fast", "several"])
def test_a_single_shape_gives_the_right_image(
    exported: Exports, tmp_path: Path, name: str, shape: tuple[int, int, int]
) -> None:
    """Minimum = optimum = maximum, where an engine knows every side and fuses most."""
    model = exported(name)
    fixed = static(graph_for_tensorrt(model, tmp_path / "m.onnx"), shape, tmp_path / "fixed.onnx")
    assert all(axis.dim_value for axis in onnx.load(fixed).graph.output[0].type.tensor_type.shape.dim)
    engines = onnx_engines(fixed)
    feeds = example_feeds(model.module.inputs, [shape])
    require_agreement(feeds, lambda feed: run_pytorch(model.module, feed), engines, TOLERANCES["fp32"])


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", ["johnson", "fast", "several"])
def test_an_engine_of_a_single_shape_does_not_shift_the_image(
    exported: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, half: bool
) -> None:
    """TensorRT 10.15 forgot the start of a slice behind a pixel shuffle when every side was fixed."""
    _need_tensorrt()
    monkeypatch.setenv("NST_CACHE", str(tmp_path))
    model, profile = exported(name), Profile.parse("256x256/256x256/256x256")
    graph_for_tensorrt(model, tmp_path / "model.onnx", half=half)
    (tmp_path / "reference.onnx").write_bytes(model.path.read_bytes())
    plan = build_plan(tmp_path, profile, model.module.network.multiple, name)
    limits = GPU_TOLERANCES["fp16" if half else "fp32"]
    with tensorrt_engine(plan, "tensorrt", require_gpu()) as engine:
        verify_on_gpu(
            engine, model.path, profile, model.module.network.multiple, limits, styles=model.module.network.styles
        )


@pytest.mark.gpu
@pytest.mark.parametrize("norm", ["group-norm", "decomposed-norm"])
def test_every_form_of_the_normalization_is_right_on_the_card(
    exported: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norm: str
) -> None:
    _need_tensorrt()
    monkeypatch.setenv("NST_CACHE", str(tmp_path))
    model = exported("several")
    graph_for_tensorrt(model, tmp_path / "model.onnx", half=True, names=(norm,))
    plan = build_plan(tmp_path, PROFILE, 4, norm)
    with tensorrt_engine(plan, "tensorrt", require_gpu()) as engine:
        verify_on_gpu(engine, model.path, PROFILE, 4, GPU_TOLERANCES["fp16"], styles=3)


@pytest.mark.gpu
def test_an_export_on_the_card_is_verified_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two: Path) -> None:
    _need_tensorrt()
    monkeypatch.setenv("NST_CACHE", str(tmp_path / "cache"))
    (published,) = export_and_publish(two, "two", tmp_path / "repo", ExportPlan(runtime="tensorrt", profile=PROFILE))
    assert published.verification["engine"]["status"].startswith("verified with tensorrt")


@pytest.mark.gpu
def test_onnx_runtime_cuda_is_verified_on_the_card(tmp_path: Path, two: Path) -> None:
    if reason := missing_packages("onnx"):
        pytest.skip(reason)
    (published,) = export_and_publish(two, "two", tmp_path / "repo", ExportPlan(runtime="gpu"))
    assert published.verification["engine"]["status"].startswith("verified with ONNX Runtime CUDA")


def _need_tensorrt() -> None:
    """TensorRT for RTX does not run on every card, so that only `tensorrt` is asked."""
    if not devices.gpus()[0]:
        pytest.skip(devices.gpus()[1])
    pytest.importorskip("tensorrt", reason="TensorRT's libraries come from NVIDIA's own index")
    if reason := missing_packages("tensorrt"):
        pytest.skip(reason)
