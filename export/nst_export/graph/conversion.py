"""Export PyTorch modules to ONNX files that Triton's containers of the last two years load."""

from __future__ import annotations

import copy
import inspect
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.export import Dim

from nst_core.process import without_warnings
from nst_export.modules import Exportable, TensorSpec

OPSET = 18
IR_VERSION = 9
"""Read by ONNX Runtime 1.17.3 (early 2024), 1.20.1 (both tested) and newer versions."""


def export_onnx(model: Exportable, path: Path, metadata: dict[str, str]) -> None:
    """Write `model` to `path` as one ONNX file, with dynamic axes where the tensors' specs have symbols.

    `metadata` is written to the file's properties. The file is checked against the ONNX specification.
    """
    with warnings.catch_warnings(), without_warnings("torch.onnx"), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.onnx's advice to its own developers
        program = torch.onnx.export(
            copy.deepcopy(model).eval(),  # tracing replaces the lists that a model keeps
            example_arguments(model),
            input_names=[spec.name for spec in model.inputs],
            output_names=[model.output.name],
            dynamic_shapes=_dynamic_shapes(model),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # None is only for torch.onnx's old exporter
    proto = program.model_proto
    proto.ir_version = IR_VERSION
    proto.producer_name = "nst"
    proto.doc_string = f"{', '.join(spec.shown() for spec in model.inputs)} -> {model.output.shown()}"
    _name_axes(proto, model)
    _strip_debugging(proto)
    write_onnx(proto, path, metadata)


def write_onnx(proto: onnx.ModelProto, path: Path, metadata: dict[str, str]) -> None:
    """Add `metadata` to the properties of `proto`, check it against the ONNX specification, and write it to `path`."""
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(proto, properties | metadata)
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())


def example_arguments(model: Exportable) -> tuple[Tensor, ...]:
    """Return arguments of `forward` for a batch of two, in which all symbols have different sizes."""
    side = max(64, model.network.min_side)
    sizes = {"N": 2, "H": side, "W": side + 4 * model.network.multiple, "h": 4, "w": 6}
    shapes = [(spec, [_size(axis, sizes) for axis in spec.axes]) for spec in model.inputs]
    return tuple(torch.ones(shape, dtype=spec.dtype) for spec, shape in shapes)


def _size(axis: str | int, sizes: dict[str, int]) -> int:
    return axis if isinstance(axis, int) else int(axis[:-1] or 1) * sizes[axis[-1]]


def _dynamic_shapes(model: Exportable) -> tuple[Any, ...]:
    """Return the symbolic axes of each argument of `forward`; `*inputs` count as a single argument.

    All symbols are independent, also `2h` and `h`, since a client may send other sizes.
    """
    dims = {axis: Dim(f"size_{axis}", min=1) for spec in model.inputs for axis in spec.axes if isinstance(axis, str)}
    shapes = [
        {position: dims[axis] for position, axis in enumerate(spec.axes) if isinstance(axis, str)}
        for spec in model.inputs
    ]
    parameters = inspect.signature(model.forward).parameters.values()
    variadic = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    return (tuple(shapes),) if variadic else tuple(shapes)


def input_specs(proto: onnx.ModelProto) -> list[TensorSpec]:
    """Return the inputs of a file that `export_onnx` wrote."""
    return [_spec(value) for value in proto.graph.input]


def output_spec(proto: onnx.ModelProto) -> TensorSpec:
    """Return the output of a file that `export_onnx` wrote."""
    return _spec(proto.graph.output[0])


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kinds = {onnx.TensorProto.UINT8: torch.uint8, onnx.TensorProto.FLOAT: torch.float32}
    kind = value.type.tensor_type
    axes = tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim)
    return TensorSpec(value.name, kinds[kind.elem_type], axes)


def _name_axes(proto: onnx.ModelProto, model: Exportable) -> None:
    """Name the axes of inputs and outputs as in the specs, so that equal axes have equal names."""
    for value, spec in zip((*proto.graph.input, *proto.graph.output), (*model.inputs, model.output), strict=True):
        for axis, name in enumerate(spec.axes):
            if isinstance(name, str):
                value.type.tensor_type.shape.dim[axis].dim_param = name


def _strip_debugging(proto: onnx.ModelProto) -> None:
    """Remove torch.onnx's annotations of nodes and values, which contain source paths of this machine."""
    graph = proto.graph
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    del graph.metadata_props[:]
