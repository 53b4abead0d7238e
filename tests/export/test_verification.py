from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

from nst_export.errors import ExportError
from nst_export.modules import ServedModel
from nst_export.verification.agreement import (
    TOLERANCES,
    Engine,
    Feeds,
    Tolerance,
    compare,
    refuse_failures,
    require_agreement,
)
from nst_export.verification.cpu import onnx_engines, open_session
from nst_export.verification.examples import SHAPES, example_feeds, photograph_batches, shapes_for
from nst_export.verification.pytorch import verify

from .conftest import MODELS, Exported, johnson

Exports = Callable[[str], Exported]


@pytest.mark.parametrize("name", ["johnson", "foreign", "several", "ulyanov"])
def test_it_agrees_with_pytorch_on_every_shape(exported: Exports, name: str) -> None:
    model = exported(name)
    agreements = verify(model.module, onnx_engines(model.path), TOLERANCES["fp32"])
    shapes = shapes_for(model.module)
    assert {agreement.shape for agreement in agreements} == set(shapes)
    assert len(shapes) >= 5
    assert len({agreement.engine for agreement in agreements}) >= 1
    assert all(agreement.finite for agreement in agreements if agreement.engine == "ONNX Runtime")


def test_small_images_are_among_the_shapes_and_others_between_them() -> None:
    small = {(1, 1, 1), (1, 1, 7), (1, 3, 3), (1, 4, 4), (1, 3, 64), (1, 15, 15), (1, 16, 16)}
    assert small | {(1, 17, 19)} <= set(shapes_for(MODELS["johnson"]()))
    assert small | {(1, 63, 63), (1, 64, 64), (1, 65, 67)} <= set(shapes_for(MODELS["ulyanov"]()))
    chosen = shapes_for(MODELS["fast"]())
    assert all(after not in small for before, after in pairwise(chosen) if before in small)
    noise = shapes_for(MODELS["texture"]())
    assert (1, 16, 64) in noise and all(height % 16 == width % 16 == 0 for _, height, width in noise)


def test_the_gate_refuses_an_engine_that_fails_at_a_size(exported: Exports) -> None:
    """As ONNX Runtime with OpenVINO did with 3x3 images, and after them with others."""
    model = exported("johnson")
    session = open_session(model.path, "CPUExecutionProvider")

    def run(feeds: Feeds) -> tuple[np.ndarray, None]:
        if min(feeds["image"].shape[1:3]) < 16:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL :\n reflection of 4 is more than 3")
        return session.run(None, feeds)[0], None

    with pytest.raises(ExportError, match=r"^not published: an engine fails at 1x1x1: .* FAIL : reflection of 4 "):
        verify(model.module, [Engine("an engine", run)], TOLERANCES["fp32"])


def test_images_of_one_color_and_half_precision_of_few_pixels_are_run_and_not_judged() -> None:
    random = np.random.default_rng(0)
    feeds = [{"image": random.integers(0, 200, (1, *size, 3), np.uint8)} for size in ((1, 1), (3, 3), (128, 128))]

    def judged(tolerance: Tolerance, *given: Feeds) -> list[bool]:
        engine = Engine("e", lambda feed: (feed["image"] + np.uint8(tolerance.max_difference), True))
        found = require_agreement(
            given, lambda feed: feed["image"], [engine], Tolerance(tolerance.max_difference, tolerance.psnr and 1.0)
        )
        return [agreement.judged for agreement in found]

    assert judged(TOLERANCES["fp32"], *feeds) == [False, True, True]
    assert judged(TOLERANCES["fp16"], *feeds) == [False, False, True]
    assert judged(TOLERANCES["fp16"], feeds[1]) == [True]  # the largest always


def test_the_gate_sees_a_small_error_and_names_all_that_failed(exported: Exports) -> None:
    """One bias of the last layer off by 4 of 255 (through the tanh: about two)."""
    network = johnson()
    network.last.bias.data += 0.02
    other = ServedModel(network).eval()
    with pytest.raises(ExportError) as error:
        verify(other, onnx_engines(exported("johnson").path), TOLERANCES["fp32"])
    for shape in SHAPES:
        assert f"at {'x'.join(map(str, shape))}: " in str(error.value)
    assert "not published" in str(error.value)


def test_the_gate_sees_styles_that_are_exchanged(exported: Exports) -> None:
    network = johnson(3)
    for norm in network.norms():
        norm.weight.data = norm.weight.data.flip(0)
    with pytest.raises(ExportError, match="differs from PyTorch"):
        verify(ServedModel(network).eval(), onnx_engines(exported("several").path), TOLERANCES["fp32"])


def test_weights_that_are_not_numbers_are_found_before_the_comparison(exported: Exports) -> None:
    network = johnson()
    network.last.bias.data[0] = float("nan")
    with pytest.raises(ExportError, match="not finite"):
        verify(ServedModel(network).eval(), [], TOLERANCES["fp32"])


def test_values_that_are_not_finite_fail_though_the_pixels_agree() -> None:
    image = np.zeros((1, 4, 4, 3), np.uint8)
    agreement = compare("an engine", image, False, image, TOLERANCES["fp32"])
    assert not agreement.passed
    with pytest.raises(ExportError, match=r"an engine at .*: values that are not finite"):
        refuse_failures([agreement], TOLERANCES["fp32"])


def test_overflow_inside_the_exported_graph_is_seen(exported: Exports) -> None:
    """A constant in the file is infinite; the pixels after it are whatever a cast makes of it."""
    import onnx

    model = exported("johnson")
    proto = onnx.load(model.path)
    bias = next(value for value in proto.graph.initializer if value.name.endswith("last.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(3, np.inf, np.float32), bias.name))
    broken = model.path.with_name("broken.onnx")
    onnx.save(proto, broken)
    (engine, *_) = onnx_engines(broken)
    feed = example_feeds(model.module.inputs, [(1, 32, 32)])[0]
    assert engine.run(feed)[1] is True  # tanh of infinity is 1: finite again
    tanh = next(node for node in proto.graph.node if node.op_type == "Tanh")
    tanh.op_type = "Identity"
    onnx.save(proto, broken)
    (engine, *_) = onnx_engines(broken)
    assert engine.run(feed)[1] is False


def test_half_precision_may_differ_more_but_not_in_the_whole_image() -> None:
    wanted = np.full((1, 64, 64, 3), 100, np.uint8)
    changed = wanted.copy()
    changed[0, 0, 0] = 104
    assert compare("e", changed, True, wanted, TOLERANCES["fp16"]).passed
    assert not compare("e", changed, True, wanted, TOLERANCES["fp32"]).passed
    assert not compare("e", wanted + 2, True, wanted, Tolerance(4, 45.0)).passed  # 42 dB


def test_the_gate_sees_a_wrong_shape() -> None:
    with pytest.raises(ExportError, match="returns uint8"):
        compare("e", np.zeros((1, 4, 4, 3), np.uint8), None, np.zeros((1, 4, 5, 3), np.uint8), TOLERANCES["fp32"])


def test_all_checks_run_before_any_failure_is_raised(exported: Exports) -> None:
    calls: list[str] = []

    def engine(name: str) -> Engine:
        def run(feeds: Feeds) -> tuple[np.ndarray, bool]:
            calls.append(name)
            return 255 - feeds["image"], True

        return Engine(name, run)

    model = exported("johnson")
    with pytest.raises(ExportError) as error:
        verify(model.module, [engine("first"), engine("second")], TOLERANCES["fp32"])
    assert calls.count("first") == calls.count("second") == len(shapes_for(model.module))
    assert "first at" in str(error.value) and "second at" in str(error.value)


def test_photographs_are_photographs() -> None:
    (batch,) = photograph_batches([(3, 40, 50)])
    assert batch.shape == (3, 40, 50, 3)
    assert batch.std() > 20
    assert not np.array_equal(batch[0], batch[1])


def test_every_style_and_interpolations_are_compared(exported: Exports) -> None:
    model = exported("several").module
    feeds = example_feeds(model.inputs, shapes_for(model))
    rows = np.concatenate([feed["style_weights"] for feed in feeds])
    assert np.array_equal(rows[:3], np.eye(3, dtype=np.float32))
    assert ((rows[3:] > 0).sum(axis=1) == 3).any()


@pytest.mark.gpu
def test_it_agrees_on_the_gpu(exported: Exports) -> None:
    """PyTorch on the GPU against the exported file on the CPU: within 2 of 255 (TF32 is off)."""
    model = exported("johnson")
    engine = onnx_engines(model.path)[0]
    torch.backends.cudnn.allow_tf32 = False
    for feed in example_feeds(model.module.inputs, shapes_for(model.module)):
        wanted = model.module.cuda()(torch.from_numpy(feed["image"]).cuda()).cpu().numpy()
        assert np.abs(engine.run(feed)[0].astype(int) - wanted).max() <= 2
    model.module.cpu()
