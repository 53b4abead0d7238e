"""Convert a graph to FP16: the convolutions and the operators between them, for half the file and memory traffic.

Pre- and postprocessing and the normalizations stay in FP32: sums over a megapixel need more than FP16's eleven bits.
TensorRT's networks are strongly typed, so the graph itself has the types.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

FOLLOWING = {"Relu", "LeakyRelu", "Pad", "Resize", "DepthToSpace", "Slice", "Concat", "Add"}
"""Operators without a precision of their own, which take that of their neighbours."""

ALL_INPUTS_ARE_VALUES = {"Conv", "Add", "Concat"}
"""Operators whose inputs are all values; for other operators only the first input is a value."""


def to_half(proto: ModelProto) -> None:
    """Convert convolutions and the operators between them to FP16, in place, with casts at the transitions."""
    nodes = _Casts(proto).nodes()
    del proto.graph.node[:], proto.graph.value_info[:]
    proto.graph.node.extend(nodes)
    read = {value for node in nodes for value in node.input}
    for constant in [constant for constant in proto.graph.initializer if constant.name not in read]:
        proto.graph.initializer.remove(constant)


class _Casts:
    """The nodes of a graph with casts between FP16 and FP32; each value is cast once."""

    def __init__(self, proto: ModelProto) -> None:
        self.graph = proto.graph
        self.types = _element_types(proto)
        self.halves = _half_outputs(proto.graph.node)
        self.constants = {constant.name: constant for constant in proto.graph.initializer}
        self.half_names: dict[str, str] = {}  # value -> its FP16 form
        self.float_names: dict[str, str] = {}  # value made in FP16 -> its FP32 form
        self.converted: list[NodeProto] = []

    def nodes(self) -> list[NodeProto]:
        """Return all nodes in order; constants in FP16 are added to the graph."""
        for node in self.graph.node:
            in_half = node.output[0] in self.halves
            for position, value in enumerate(node.input):
                if self.types.get(value) != TensorProto.FLOAT:
                    continue
                if in_half and (node.op_type in ALL_INPUTS_ARE_VALUES or position == 0):
                    node.input[position] = self._as_half(value)
                elif not in_half and value in self.halves:
                    node.input[position] = self._cast(value, self.float_names, TensorProto.FLOAT)
            self.converted.append(node)
            if in_half:
                self.half_names[node.output[0]] = node.output[0]
        return [NodeProto.FromString(node.SerializeToString()) for node in self.converted]

    def _as_half(self, value: str) -> str:
        if value in self.constants and value not in self.half_names:
            self.half_names[value] = f"{value}_half"
            values = numpy_helper.to_array(self.constants[value]).astype(np.float16)
            self.graph.initializer.append(numpy_helper.from_array(values, self.half_names[value]))
        return self._cast(value, self.half_names, TensorProto.FLOAT16)

    def _cast(self, value: str, known: dict[str, str], kind: int) -> str:
        if value not in known:
            known[value] = f"{value}_{'half' if kind == TensorProto.FLOAT16 else 'float'}"
            self.converted.append(helper.make_node("Cast", [value], [known[value]], to=kind))
        return known[value]


def _element_types(proto: ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {constant.name: constant.data_type for constant in inferred.initializer}


def _half_outputs(nodes: list[NodeProto]) -> set[str]:
    """Return the outputs of the nodes that run in FP16: convolutions, and `FOLLOWING` operators next to them.

    An addition runs in FP16 only if one of its inputs does, as in a residual block: an addition of two FP32 values is
    part of a normalization.
    """
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    # A convolution of unsqueezed values computes scales and shifts, not images (`channel_factors`).
    factors = {node.output[0] for node in nodes if node.op_type == "Unsqueeze"}
    halves = {node.output[0] for node in nodes if node.op_type == "Conv" and node.input[0] not in factors}

    def follows(node: NodeProto) -> bool:
        if node.op_type not in FOLLOWING:
            return False
        if any(value in halves for value in node.input):
            return True
        feeds_half = any(reader.output[0] in halves for reader in readers.get(node.output[0], []))
        return node.op_type != "Add" and feeds_half

    while True:
        found = {node.output[0] for node in nodes if follows(node)}
        if found <= halves:
            return halves
        halves |= found
