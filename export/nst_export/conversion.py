"""A checkpoint as an ONNX file that Triton's containers of the last two years load."""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.export import Dim

from nst_export.modules import Exportable, TensorSpec

OPSET = 18
IR_VERSION = 9
"""Read by ONNX Runtime 1.17.3 (early 2024) and 1.20.1, which were tried, and by newer ones."""


def export(model: Exportable, path: Path, metadata: dict[str, str]) -> None:
    """Write `model` to `path` as one ONNX file, its axes dynamic where the tensors' specs have symbols.

    `metadata` goes into the file's own properties. The file is checked against the ONNX specification.
    """
    with warnings.catch_warnings(), _quiet("torch.onnx"), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's advice to its own authors
        program = torch.onnx.export(
            copy.deepcopy(model).eval(),  # tracing leaves other lists in a model that keeps any
            example(model),
            input_names=[spec.name for spec in model.inputs],
            output_names=[model.output.name],
            dynamic_shapes=_dynamic_shapes(model),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # only the old exporter returns None
    proto = program.model_proto
    proto.ir_version = IR_VERSION
    proto.producer_name = "nst"
    proto.doc_string = f"{', '.join(spec.shown() for spec in model.inputs)} -> {model.output.shown()}"
    _name_axes(proto, model)
    _strip_debugging(proto)
    write(proto, path, metadata)


def write(proto: onnx.ModelProto, path: Path, metadata: dict[str, str]) -> None:
    """Check `proto`, add `metadata` to its properties, and write it to `path`."""
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(proto, properties | metadata)
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())


def example(model: Exportable) -> tuple[Tensor, ...]:
    """Inputs of a batch of two, of sizes that no two symbols share."""
    side = max(64, model.network.min_side)
    sizes = {"N": 2, "H": side, "W": side + 4 * model.network.multiple, "h": 4, "w": 6}
    shapes = [(spec, [_size(axis, sizes) for axis in spec.axes]) for spec in model.inputs]
    return tuple(torch.ones(shape, dtype=spec.dtype) for spec, shape in shapes)


def _size(axis: str | int, sizes: dict[str, int]) -> int:
    return axis if isinstance(axis, int) else int(axis[:-1] or 1) * sizes[axis[-1]]


def _dynamic_shapes(model: Exportable) -> tuple[Any, ...]:
    """For each argument of `forward` its symbolic axes; `*inputs` are one argument.

    Every symbol stands alone, also `2h` beside `h`: the graph must see that a server may be sent other sizes.
    """
    dims = {axis: Dim(f"size_{axis}", min=1) for spec in model.inputs for axis in spec.axes if isinstance(axis, str)}
    shapes = [
        {position: dims[axis] for position, axis in enumerate(spec.axes) if isinstance(axis, str)}
        for spec in model.inputs
    ]
    variadic = any(one.kind is one.VAR_POSITIONAL for one in inspect.signature(model.forward).parameters.values())
    return (tuple(shapes),) if variadic else tuple(shapes)


def tensors(proto: onnx.ModelProto) -> list[TensorSpec]:
    """The inputs of a file that `export` made."""
    return [_spec(value) for value in proto.graph.input]


def output(proto: onnx.ModelProto) -> TensorSpec:
    """Its output."""
    return _spec(proto.graph.output[0])


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kinds = {onnx.TensorProto.UINT8: torch.uint8, onnx.TensorProto.FLOAT: torch.float32}
    kind = value.type.tensor_type
    axes = tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim)
    return TensorSpec(value.name, kinds[kind.elem_type], axes)


def _name_axes(proto: onnx.ModelProto, model: Exportable) -> None:
    """Call the axes the same on both sides, so that a reader sees that they agree."""
    for value, spec in zip((*proto.graph.input, *proto.graph.output), (*model.inputs, model.output), strict=True):
        for axis, name in enumerate(spec.axes):
            if isinstance(name, str):
                value.type.tensor_type.shape.dim[axis].dim_param = name


def _strip_debugging(proto: onnx.ModelProto) -> None:
    """Remove the exporter's notes on nodes and values: they hold source paths of this machine."""
    graph = proto.graph
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    del graph.metadata_props[:]


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Hold back a logger's warnings for the time of a block."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
