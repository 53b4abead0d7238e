"""Rewrites of padding."""

from __future__ import annotations

from onnx import ModelProto, NodeProto, helper

from nst_export.graph.editing import AXIS_END, Graph, attribute


def wrap(proto: ModelProto) -> int:
    """Replace circular padding with slices and concatenations: neither operator set 18 nor OpenVINO supports it."""
    graph = Graph(proto)
    count = 0
    for pad in graph.nodes("Pad"):
        widths = graph.constant(pad.input[1]).tolist()
        if attribute(pad, "mode") != b"wrap" or widths[2:4] != widths[6:8]:
            continue
        value, nodes = pad.input[0], []
        for axis in (2, 3):
            name = pad.output[0] if axis == 3 else f"{pad.output[0]}_rows"
            width, end = graph.integers(widths[axis]), graph.integers(AXIS_END)
            from_end, zero, along = graph.integers(-widths[axis]), graph.integers(0), graph.integers(axis)
            nodes += [
                helper.make_node("Slice", [value, from_end, end, along], [f"{name}_before"]),
                helper.make_node("Slice", [value, zero, width, along], [f"{name}_after"]),
                helper.make_node("Concat", [f"{name}_before", value, f"{name}_after"], [name], axis=axis),
            ]
            value = name
        graph.replace([pad], nodes)
        count += 1
    return count


def adjacent_pads(proto: ModelProto) -> int:
    """Move the padding to the network's grid after the preprocessing, next to the first convolution's padding.

    Elementwise operators commute with padding. An engine that fuses copies runs two adjacent pads as one copy, and in
    half precision both copy half as much. They cannot become a single pad: the second reflects what the first appended,
    so a single reflection of both widths would give other pixels beyond the grid.
    """
    graph = Graph(proto)
    count = 0
    for pad in graph.nodes("Pad"):
        if pad.input[1] in graph.constants:
            continue
        between: list[NodeProto] = []
        reader = graph.only_reader(pad)
        while reader and _is_elementwise(graph, reader):
            between.append(reader)
            reader = graph.only_reader(reader)
        if not between or reader is None or reader.op_type != "Pad":
            continue
        moved = [NodeProto.FromString(node.SerializeToString()) for node in between]
        moved[0].input[0] = pad.input[0]
        moved[-1].output[0] = f"{between[-1].output[0]}_unpadded"
        last = helper.make_node("Pad", [moved[-1].output[0], *pad.input[1:]], [between[-1].output[0]])
        last.attribute.extend(pad.attribute)
        for node in between[:-1]:
            graph.forget_type(node.output[0])
        graph.replace([pad, *between], [*moved, last])
        count += 1
    return count


def _is_elementwise(graph: Graph, node: NodeProto) -> bool:
    """Return whether each value of the result depends only on the input value at the same position."""
    single = all(graph.constant(name).size == 1 and name in graph.constants for name in node.input[1:])
    return single and node.op_type in ("Add", "Cast", "Div", "Mul", "Sub")
