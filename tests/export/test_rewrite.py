from collections import Counter
from collections.abc import Callable

import onnx
import pytest

from nst_export import precision, verify
from nst_export.inspection import arithmetic
from nst_export.onnx import write
from nst_export.rewrite import FOR, REWRITES, rewrite
from nst_export.verify import LIMITS

from .conftest import Exported

Exports = Callable[[str], Exported]


def changed(one: Exported, names: tuple[str, ...], *, half: bool = False) -> tuple[onnx.ModelProto, dict[str, int]]:
    """The rewritten file, which the specification's checker has seen, beside the plain one."""
    proto = onnx.load(one.path)
    counts = rewrite(proto, names)
    if half:
        precision.to_half(proto)
    write(proto, one.path.with_name("changed.onnx"), {})
    return proto, counts


@pytest.mark.parametrize("name", ["johnson", "foreign", "several", "ulyanov", "texture"])
@pytest.mark.parametrize("engine", ["cpu", "tensorrt"])
def test_what_an_engine_gets_passes_the_gate(exported: Exports, name: str, engine: str) -> None:
    one = exported(name)
    changed(one, FOR[engine])
    verify.verify(one.model, verify.onnx_engines(one.path.with_name("changed.onnx")), LIMITS["fp32"])


@pytest.mark.parametrize(
    ("name", "network", "places"),
    [
        ("upsample", "johnson", 2),
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
    one = exported(network)
    proto, counts = changed(one, ("wrap", name))
    assert counts[name] == places
    operators = Counter(node.op_type for node in proto.graph.node)
    if name in ("upsample", "doubling") and places:
        assert "Resize" not in operators
    verify.verify(one.model, verify.onnx_engines(one.path.with_name("changed.onnx")), LIMITS["fp32"])


def test_upsample_saves_the_arithmetic_that_it_promises(exported: Exports) -> None:
    """Two layers of 16x3x3 to 8 and 8x3x3 to 4 channels at 128^2 and 256^2; 4/9 of it, on one row and column more."""
    one = exported("johnson")
    plain = arithmetic(onnx.load(one.path), 256)
    proto, _ = changed(one, ("upsample",))
    before = 2 * 9 * (128**2 * 16 * 8 + 256**2 * 8 * 4)
    after = 2 * 4 * 4 * (65**2 * 16 * 8 + 129**2 * 8 * 4)
    assert plain - arithmetic(proto, 256) == before - after


def test_constants_that_nobody_reads_are_gone(exported: Exports) -> None:
    proto, _ = changed(exported("johnson"), FOR["cpu"])
    read = {value for node in proto.graph.node for value in node.input}
    assert {one.name for one in proto.graph.initializer} <= read


def test_the_order_in_which_they_are_asked_for_does_not_matter(exported: Exports) -> None:
    one = exported("johnson")
    first, _ = changed(one, ("upsample", "doubling"))
    second, _ = changed(one, ("doubling", "upsample"))
    assert first.SerializeToString() == second.SerializeToString()
    assert next(iter(REWRITES)) == "upsample"


@pytest.mark.parametrize("name", ["johnson", "foreign", "several", "ulyanov", "texture"])
def test_half_precision_passes_its_gate_and_keeps_statistics_whole(exported: Exports, name: str) -> None:
    one = exported(name)
    proto, _ = changed(one, FOR["cpu"], half=True)
    kinds = {value.name: value.data_type for value in proto.graph.initializer}
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    assert all(kinds[weight] == onnx.TensorProto.FLOAT16 for node in convolutions for weight in node.input[1:])
    inferred = onnx.shape_inference.infer_shapes(proto)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    for node in proto.graph.node:
        if node.op_type in ("InstanceNormalization", "Tanh", "Sigmoid", "Clip", "Round"):
            assert types[node.output[0]] == onnx.TensorProto.FLOAT, node.op_type
    path = one.path.with_name("changed.onnx")
    verify.verify(one.model, verify.onnx_engines(path), LIMITS["fp16"])
