"""A checkpoint as an ONNX file that Triton's containers of the last two years load."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch.export import Dim

from nst_export.served import INPUT, OUTPUT, STYLE_WEIGHTS, ServedModel

OPSET = 18
IR_VERSION = 9
"""Read by ONNX Runtime 1.17.3 (early 2024) and 1.20.1, which were tried, and by newer ones."""


def export(model: ServedModel, path: Path, metadata: dict[str, str]) -> None:
    """Write `model` to `path` as one ONNX file with dynamic batch, height and width.

    The input is `image`, the output `stylized`, both `uint8 [N, H, W, 3]`; a network of several
    styles has a second input, `style_weights`, `float [N, S]`. `metadata` goes into
    the file's own properties. The file is checked against the ONNX specification.
    """
    network = model.network
    side = max(64, network.min_side)
    example = [torch.zeros(2, side, side + 4 * network.multiple, 3, dtype=torch.uint8)]
    batch = Dim("N", min=1)
    sizes = {"image": {0: batch, 1: Dim("H", min=network.min_side), 2: Dim("W", min=network.min_side)}}
    if network.styles > 1:
        example.append(torch.ones(2, network.styles))
        sizes["style_weights"] = {0: batch}
    with warnings.catch_warnings(), _quiet("torch.onnx"), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's advice to its own authors
        program = torch.onnx.export(
            model.eval(),
            tuple(example),
            input_names=[INPUT, STYLE_WEIGHTS][: len(example)],
            output_names=[OUTPUT],
            dynamic_shapes=sizes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # only the old exporter returns None
    proto = program.model_proto
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.doc_string = "nst", "image uint8 [N,H,W,3] -> stylized uint8 [N,H,W,3]"
    _name_axes(proto)
    _strip_debugging(proto)
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())


def _name_axes(proto: onnx.ModelProto) -> None:
    """Call the axes N, H and W on both sides, so that a reader sees that they agree."""
    for value in (*proto.graph.input, *proto.graph.output):
        for axis, name in enumerate("N" if value.name == STYLE_WEIGHTS else "NHW"):
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
