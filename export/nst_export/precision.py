"""FP16: half the file and half the memory traffic on a GPU, for the convolutions and what is between them.

In FP32 stay the picture's own arithmetic and everything about the normalisations: sums over a
megapixel do not fit into eleven bits. TensorRT's networks are strongly typed, so the types stand in the graph.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

FOLLOWING = {"Relu", "LeakyRelu", "Pad", "Resize", "DepthToSpace", "Slice", "Concat", "Add"}
"""Operators that change no precision of their own and so take that of their neighbours."""

VALUES = {"Conv": None, "Add": None, "Concat": None}
"""Operators all of whose inputs are values; of the others only the first is."""


def to_half(proto: ModelProto) -> None:
    """Convert `proto` in place: convolutions and what connects them in FP16, casts at the borders."""
    types = _element_types(proto)
    halves = _in_half(proto.graph.node)
    half_names: dict[str, str] = {}  # value -> its FP16 form
    float_names: dict[str, str] = {}  # value made in FP16 -> its FP32 form
    constants = {one.name: one for one in proto.graph.initializer}
    nodes: list[NodeProto] = []

    def cast(value: str, known: dict[str, str], kind: int) -> str:
        if value not in known:
            known[value] = f"{value}_{'half' if kind == TensorProto.FLOAT16 else 'float'}"
            nodes.append(helper.make_node("Cast", [value], [known[value]], to=kind))
        return known[value]

    def as_half(value: str) -> str:
        if value in constants and value not in half_names:
            half_names[value] = f"{value}_half"
            values = numpy_helper.to_array(constants[value]).astype(np.float16)
            proto.graph.initializer.append(numpy_helper.from_array(values, half_names[value]))
        return cast(value, half_names, TensorProto.FLOAT16)

    for node in proto.graph.node:
        in_half = node.output[0] in halves
        for position, value in enumerate(node.input):
            if types.get(value) != TensorProto.FLOAT:
                continue
            if in_half and (node.op_type in VALUES or position == 0):
                node.input[position] = as_half(value)
            elif not in_half and value in halves:
                node.input[position] = cast(value, float_names, TensorProto.FLOAT)
        nodes.append(node)
        if in_half:
            half_names[node.output[0]] = node.output[0]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:], proto.graph.value_info[:]
    proto.graph.node.extend(kept)
    read = {value for node in kept for value in node.input}
    for one in [one for one in proto.graph.initializer if one.name not in read]:
        proto.graph.initializer.remove(one)


def _element_types(proto: ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    types = {one.name: one.type.tensor_type.elem_type for one in (*inferred.value_info, *inferred.input)}
    types |= {one.name: one.type.tensor_type.elem_type for one in inferred.output}
    return types | {one.name: one.data_type for one in inferred.initializer}


def _in_half(nodes: list[NodeProto]) -> set[str]:
    """Outputs of the nodes that run in FP16: convolutions, and followers before, between and after them.

    An addition only if one of its sides is in FP16 already, the trunk of a residual block: an
    addition between two values in FP32 is part of a normalisation.
    """
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    # A convolution of what was unsqueezed is of scales and shifts, not of pictures (`rewrite.channel_factors`).
    numbers = {node.output[0] for node in nodes if node.op_type == "Unsqueeze"}
    halves = {node.output[0] for node in nodes if node.op_type == "Conv" and node.input[0] not in numbers}
    while True:
        found = {
            node.output[0]
            for node in nodes
            if node.op_type in FOLLOWING
            and (
                any(value in halves for value in node.input)
                or (node.op_type != "Add" and any(one.output[0] in halves for one in readers.get(node.output[0], [])))
            )
        }
        if found <= halves:
            return halves
        halves |= found
