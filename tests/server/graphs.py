"""Small ONNX graphs in a model repository, with the tensors of a served style and arithmetic that a test can redo."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LEVELS = 200
"""`picky` fails inside the graph for an image with this value or a higher one in it."""


def _tensor(name: str, kind: int, *axes: str | int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, axes)


def _save(
    file: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    *outputs: onnx.ValueInfoProto,
    **constants: np.ndarray,
) -> None:
    weights = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, file)


def inverted(file: Path, batch: str | int = "N") -> None:
    """`stylized` is 255 - `image`."""
    _save(
        file,
        [helper.make_node("Sub", ["white", "image"], ["stylized"])],
        [_tensor("image", TensorProto.UINT8, batch, "H", "W", 3)],
        _tensor("stylized", TensorProto.UINT8, batch, "H", "W", 3),
        white=np.array(255, np.uint8),
    )


def weighted(file: Path) -> None:
    """`stylized` is `image` times the first of two `style_weights`."""
    _save(
        file,
        [
            helper.make_node("Slice", ["style_weights", "zero", "unit", "unit"], ["first"]),
            helper.make_node("Reshape", ["first", "column"], ["factor"]),
            helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["values", "factor"], ["product"]),
            helper.make_node("Cast", ["product"], ["stylized"], to=TensorProto.UINT8),
        ],
        [_tensor("image", TensorProto.UINT8, "N", "H", "W", 3), _tensor("style_weights", TensorProto.FLOAT, "N", 2)],
        _tensor("stylized", TensorProto.UINT8, "N", "H", "W", 3),
        zero=np.array([0]),
        unit=np.array([1]),
        column=np.array([-1, 1, 1, 1]),
    )


def picky(file: Path) -> None:
    """`stylized` is `image`, looked up in a table that ends at LEVELS."""
    _save(
        file,
        [
            helper.make_node("Cast", ["image"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "index"], ["stylized"]),
        ],
        [_tensor("image", TensorProto.UINT8, "N", "H", "W", 3)],
        _tensor("stylized", TensorProto.UINT8, "N", "H", "W", 3),
        table=np.arange(LEVELS, dtype=np.uint8),
    )


TYPES = {
    "BOOL": TensorProto.BOOL,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "INT8": TensorProto.INT8,
    "INT64": TensorProto.INT64,
    "UINT16": TensorProto.UINT16,
}


def typed(file: Path) -> None:
    """A tensor of each of `TYPES` by its name, and `same_` and its name with the same values."""
    _save(
        file,
        [helper.make_node("Identity", [name], [f"same_{name}"]) for name in TYPES],
        [_tensor(name, kind, "N", "C") for name, kind in TYPES.items()],
        *(_tensor(f"same_{name}", kind, "N", "C") for name, kind in TYPES.items()),
    )


def texts(file: Path) -> None:
    """`stylized` is `image`, both of strings."""
    tensors = [_tensor(name, TensorProto.STRING, "N", "C") for name in ("image", "stylized")]
    _save(file, [helper.make_node("Identity", ["image"], ["stylized"])], tensors[:1], tensors[1])
