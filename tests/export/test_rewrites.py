from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from nst_core.packages.onnx_runtime import import_onnxruntime
from nst_export.graph.conversion import write_onnx
from nst_export.graph.half_precision import to_half
from nst_export.graph.rewrites import DEFAULT_REWRITES, REWRITES, apply_rewrites
from nst_export.inspection import arithmetic
from nst_export.verification.agreement import TOLERANCES
from nst_export.verification.cpu import installed_providers, onnx_engines
from nst_export.verification.examples import example_feeds
from nst_export.verification.pytorch import run_pytorch, verify

from .conftest import Exported

Exports = Callable[[str], Exported]

STATISTICS = {"InstanceNormalization", "GroupNormalization", "ReduceMean", "Sqrt"}


def changed(model: Exported, names: tuple[str, ...], *, half: bool = False) -> tuple[onnx.ModelProto, dict[str, int]]:
    """The rewritten file, which the specification's checker has seen, beside the plain file."""
    proto = onnx.load(model.path)
    counts = apply_rewrites(proto, names)
    if half:
        to_half(proto)
    write_onnx(proto, model.path.with_name("changed.onnx"), {})
    return proto, counts


@pytest.mark.parametrize("name", ["johnson", "foreign", "several", "ulyanov", "texture"])
@pytest.mark.parametrize("engine", ["cpu", "tensorrt"])
def test_what_an_engine_gets_passes_the_gate(exported: Exports, name: str, engine: str) -> None:
    model = exported(name)
    changed(model, DEFAULT_REWRITES[engine])
    verify(model.module, onnx_engines(model.path.with_name("changed.onnx")), TOLERANCES["fp32"])


@pytest.mark.parametrize(
    ("name", "network", "places"),
    [
        ("upsample", "johnson", 2),
        ("upsample-windows", "johnson", 2),
        ("upsample-windows", "fast", 1),
        ("upsample-3x3", "johnson", 2),
        ("upsample-3x3", "fast", 1),
        ("adjacent-pads", "several", 1),
        ("adjacent-pads", "ulyanov", 0),
        ("group-norm", "several", 15),
        ("group-norm", "fast", 11),
        ("decomposed-norm", "several", 15),
        ("decomposed-norm", "fast", 11),
        ("decomposed-norm", "ulyanov", 43),
        ("channel-factors", "several", 30),
        ("channel-factors", "johnson", 0),
        ("last-convolution", "johnson", 1),
        ("doubling", "johnson", 2),
        ("doubling", "ulyanov", 5),
        ("wrap", "texture", 18),
        ("wrap", "johnson", 0),
        ("upsample", "ulyanov", 0),
        ("last-convolution", "ulyanov", 0),
    ],
)
def test_each_alone_finds_its_pattern_and_passes_the_gate(
    exported: Exports, name: str, network: str, places: int
) -> None:
    model = exported(network)
    proto, counts = changed(model, ("wrap", name))
    assert counts[name] == places
    operators = Counter(node.op_type for node in proto.graph.node)
    if name in ("upsample", "upsample-windows", "upsample-3x3", "doubling") and places:
        assert "Resize" not in operators
    if name.endswith("-norm"):
        assert "InstanceNormalization" not in operators
    verify(model.module, onnx_engines(model.path.with_name("changed.onnx")), TOLERANCES["fp32"])


@pytest.mark.parametrize("name", ["upsample", "upsample-windows"])
def test_upsample_saves_the_arithmetic_that_it_promises(exported: Exports, name: str) -> None:
    """Two layers of 16x3x3 to 8 and 8x3x3 to 4 channels at 128^2 and 256^2; 4/9 of it, on one row and column more."""
    model = exported("johnson")
    plain = arithmetic(onnx.load(model.path), 256)
    proto, _ = changed(model, (name,))
    before = 2 * 9 * (128**2 * 16 * 8 + 256**2 * 8 * 4)
    after = 2 * 4 * 4 * (65**2 * 16 * 8 + 129**2 * 8 * 4)
    assert plain - arithmetic(proto, 256) == before - after


def test_upsample_of_3x3_multiplies_as_often_as_no_rewrite(exported: Exports) -> None:
    model = exported("johnson")
    proto, _ = changed(model, ("upsample-3x3",))
    assert arithmetic(proto, 256) == arithmetic(onnx.load(model.path), 256)


MOVES = {"Slice", "Pad", "Reshape", "Transpose", "Concat", "Split", "Squeeze", "Unsqueeze", "Cast", "Identity"}
"""Operators that only move values, which an engine may fuse with the pixel shuffle before them."""


def moved_after(proto: onnx.ModelProto, shuffle: onnx.NodeProto) -> list[str]:
    """Operators between a shuffle and the nodes that compute with what it makes."""
    found, values = [], [shuffle.output[0]]
    while values:
        readers = [node for node in proto.graph.node if values[0] in node.input]
        del values[0]
        moving = [node for node in readers if node.op_type in MOVES]
        found += [node.op_type for node in moving]
        values += [node.output[0] for node in moving]
    return found


WINDOWS = ("upsample-windows", *(name for name in DEFAULT_REWRITES["tensorrt"] if name != "upsample-3x3"))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("names", [DEFAULT_REWRITES["tensorrt"], WINDOWS], ids=["3x3", "windows"])
@pytest.mark.parametrize("name", ["johnson", "foreign", "several", "fast", "ulyanov", "texture", "statistics", "tiled"])
def test_no_slice_follows_a_pixel_shuffle_in_what_tensorrt_gets(
    exported: Exports, name: str, names: tuple[str, ...], half: bool
) -> None:
    """TensorRT 10.15 fuses both into a kernel that ignores the start of the slice if all sides are fixed."""
    proto, _ = changed(exported(name), names, half=half)
    shuffles = [node for node in proto.graph.node if node.op_type == "DepthToSpace"]
    assert shuffles
    for shuffle in shuffles:
        assert set(moved_after(proto, shuffle)) <= {"Cast"}
    # What is cropped at the end is computed after the shuffle, and begins at zero.
    if name != "texture":  # circular padding is slices, none of which follows a shuffle
        slices = [node for node in proto.graph.node if node.op_type == "Slice" and "_window_" not in node.output[0]]
        assert all(not constants(proto)[node.input[1]].any() for node in slices)


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {value.name: onnx.numpy_helper.to_array(value) for value in proto.graph.initializer}


@pytest.mark.parametrize("shape", [(1, 17, 19), (1, 33, 50), (2, 66, 35), (1, 64, 64)])
@pytest.mark.parametrize("rewrites", [("upsample",), ("upsample-windows",), ("upsample-3x3", "adjacent-pads")])
def test_pixels_stay_where_they_are_on_odd_sizes(
    exported: Exports, shape: tuple[int, int, int], rewrites: tuple[str, ...]
) -> None:
    """At most rounding: a difference of 1 of 255, in one value of a hundred."""
    model = exported("fast")
    changed(model, rewrites)
    (engine, *_) = onnx_engines(model.path.with_name("changed.onnx"))
    (feed,) = example_feeds(model.module.inputs, [shape])
    difference = np.abs(engine.run(feed)[0].astype(int) - run_pytorch(model.module, feed))
    assert difference.max() <= 1
    assert difference.mean() < 0.01


def test_one_reflection_of_both_widths_would_be_another_image(exported: Exports) -> None:
    """Why `adjacent-pads` leaves two pads: the second reflects what the first has appended."""
    row = np.arange(17.0)
    twice = np.pad(np.pad(row, (0, 3), mode="reflect"), (0, 2), mode="reflect")
    assert not np.array_equal(twice, np.pad(row, (0, 5), mode="reflect"))
    assert np.array_equal(np.pad(row[:16], (0, 2), mode="reflect"), np.pad(np.pad(row[:16], 0), (0, 2), mode="reflect"))


def test_adjacent_pads_are_adjacent_and_both_in_half_precision(exported: Exports) -> None:
    proto, _ = changed(exported("fast"), DEFAULT_REWRITES["tensorrt"], half=True)
    makers = {node.output[0]: node for node in proto.graph.node}
    first = next(node for node in proto.graph.node if node.op_type == "Conv")
    own = makers[first.input[0]]
    computed = makers[own.input[0]]
    assert (own.op_type, computed.op_type) == ("Pad", "Pad")
    assert computed.input[1] not in constants(proto)
    assert makers[computed.input[0]].op_type == "Cast"  # to half, before both


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", ["several", "statistics", "tiled"])
def test_what_multiplies_an_image_has_the_layout_of_a_convolution(exported: Exports, name: str, half: bool) -> None:
    """OpenVINO reorders the image for factors of another layout, which takes longer than all its convolutions."""
    proto, _ = changed(exported(name), DEFAULT_REWRITES["cpu"], half=half)
    kinds = {value.name: value.data_type for value in proto.graph.initializer}
    axes = constants(proto)
    numbers = {
        node.output[0]
        for node in proto.graph.node
        if node.op_type == "Unsqueeze" and axes[node.input[1]].tolist() == [2, 3]
    }
    readers = [node for node in proto.graph.node if numbers & set(node.input)]
    assert len(readers) >= 30 and {node.op_type for node in readers} == {"Conv"}
    # Scales and shifts stay whole in half precision.
    assert {kinds[node.input[1]] for node in readers} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("name", ["johnson", "several", "fast", "ulyanov", "statistics", "tiled"])
def test_openvino_runs_all_of_what_a_cpu_gets(exported: Exports, name: str) -> None:
    """A node that it leaves to ONNX Runtime splits the graph, and layouts do not cross the split."""
    if "OpenVINO" not in installed_providers():
        pytest.skip("ONNX Runtime has no OpenVINO here")
    changed(exported(name), DEFAULT_REWRITES["cpu"])
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    path = str(exported(name).path.with_name("changed.onnx"))
    onnxruntime.InferenceSession(path, options, providers=["OpenVINOExecutionProvider"])


def test_an_interpolated_scale_is_folded_into_the_decomposed_normalization(exported: Exports) -> None:
    """One multiplication and one addition per pixel: the scales of several styles add none."""
    plain = onnx.load(exported("several").path)
    proto, _ = changed(exported("several"), ("decomposed-norm",))
    counts = Counter(node.op_type for node in proto.graph.node)
    before = Counter(node.op_type for node in plain.graph.node)
    assert counts["Mul"] - before["Mul"] == 15  # the squares; the scaling takes the place of the interpolated scales'
    assert counts["Add"] - before["Add"] == 15  # epsilon


def test_constants_that_nobody_reads_are_gone(exported: Exports) -> None:
    proto, _ = changed(exported("johnson"), DEFAULT_REWRITES["cpu"])
    read = {value for node in proto.graph.node for value in node.input}
    assert {constant.name for constant in proto.graph.initializer} <= read


def test_the_order_in_which_they_are_asked_for_does_not_matter(exported: Exports) -> None:
    model = exported("johnson")
    first, _ = changed(model, ("upsample", "doubling"))
    second, _ = changed(model, ("doubling", "upsample"))
    assert first.SerializeToString() == second.SerializeToString()
    assert next(iter(REWRITES)) == "upsample"


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        *((name, ()) for name in ("johnson", "foreign", "several", "ulyanov", "texture")),
        *((name, (norm,)) for name in ("several", "fast") for norm in ("group-norm", "decomposed-norm")),
    ],
)
def test_half_precision_passes_its_gate_and_keeps_statistics_whole(
    exported: Exports, name: str, norm: tuple[str, ...]
) -> None:
    model = exported(name)
    proto, _ = changed(model, (*DEFAULT_REWRITES["cpu"], *norm), half=True)
    kinds = {value.name: value.data_type for value in proto.graph.initializer}
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    numbers = {node.output[0] for node in proto.graph.node if node.op_type == "Unsqueeze"}
    images = [node for node in convolutions if node.input[0] not in numbers]
    assert images and all(kinds[weight] == onnx.TensorProto.FLOAT16 for node in images for weight in node.input[1:])
    types = element_types(proto)
    for node in proto.graph.node:
        if node.op_type in STATISTICS | {"Tanh", "Sigmoid", "Clip", "Round"}:
            assert types[node.output[0]] == onnx.TensorProto.FLOAT, node.op_type
    path = model.path.with_name("changed.onnx")
    # OpenVINO does not read a GroupNormalization between casts, and never serves such a graph.
    verify(model.module, onnx_engines(path, openvino=not norm), TOLERANCES["fp16"])


def element_types(proto: onnx.ModelProto) -> dict[str, int]:
    """Of every value. ONNX infers nothing behind a GroupNormalization, whose types are InstanceNormalization's."""
    known = onnx.ModelProto.FromString(proto.SerializeToString())
    for node in known.graph.node:
        if node.op_type == "GroupNormalization":
            node.op_type = "InstanceNormalization"
            kept = [attribute for attribute in node.attribute if attribute.name == "epsilon"]
            del node.attribute[:]
            node.attribute.extend(kept)
    inferred = onnx.shape_inference.infer_shapes(known).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
