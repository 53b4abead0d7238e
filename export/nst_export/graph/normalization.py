"""Rewrites of instance normalization to other operators, which an engine may run faster."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from nst_export.graph.editing import Graph, attribute

GROUP_OPSET, GROUP_IR_VERSION = 21, 10
"""The first versions in which `GroupNormalization` is not deprecated; the other operators are the same in both."""


def group_norm(proto: ModelProto) -> int:
    """Replace it with `GroupNormalization`, a group per channel; the file then has a later operator set."""
    graph = Graph(proto)
    found = graph.nodes("InstanceNormalization")
    if found:
        proto.opset_import[0].version = max(GROUP_OPSET, proto.opset_import[0].version)
        proto.ir_version = max(GROUP_IR_VERSION, proto.ir_version)
    for norm in found:
        channels = len(graph.constant(norm.input[1]))
        node = helper.make_node(
            "GroupNormalization",
            list(norm.input),
            list(norm.output),
            num_groups=channels,
            epsilon=attribute(norm, "epsilon"),
        )
        graph.replace([norm], [node])
    return len(found)


def decomposed_norm(proto: ModelProto) -> int:
    """Replace it with means, differences and products.

    A network of several styles normalizes without scale and shift, then multiplies by the interpolated scales and adds
    the interpolated shifts. Here the scales are first divided by the standard deviation, one number per channel.
    """
    graph = Graph(proto)
    found = graph.nodes("InstanceNormalization")
    for norm in found:
        name = norm.output[0]
        old, scale, shift = _scale_and_shift(graph, norm)
        axes = graph.integers(2, 3)
        epsilon = graph.add(f"{name}_epsilon", np.array(attribute(norm, "epsilon"), np.float32))
        steps = [
            ("ReduceMean", [norm.input[0], axes], "mean"),
            ("Sub", [norm.input[0], f"{name}_mean"], "centered"),
            ("Mul", [f"{name}_centered", f"{name}_centered"], "squares"),
            ("ReduceMean", [f"{name}_squares", axes], "variance"),
            ("Add", [f"{name}_variance", epsilon], "above_zero"),
            ("Sqrt", [f"{name}_above_zero"], "deviation"),
            ("Div", [scale, f"{name}_deviation"], "factor"),
            ("Mul", [f"{name}_centered", f"{name}_factor"], "scaled"),
        ]
        nodes = [helper.make_node(operator, inputs, [f"{name}_{step}"]) for operator, inputs, step in steps]
        nodes.append(helper.make_node("Add", [f"{name}_scaled", shift], list(old[-1].output)))
        graph.replace(old, nodes)
    return len(found)


def _scale_and_shift(graph: Graph, norm: NodeProto) -> tuple[list[NodeProto], str, str]:
    """Return the nodes of the normalization, and its scale and shift in a shape that multiplies `[N, C, H, W]`."""
    scale, shift = graph.constant(norm.input[1]), graph.constant(norm.input[2])
    multiply = graph.only_reader(norm)
    add = graph.only_reader(multiply) if multiply else None
    if multiply and add and _is_identity(scale, shift) and (multiply.op_type, add.op_type) == ("Mul", "Add"):
        interpolated = [_other(multiply, norm.output[0]), _other(add, multiply.output[0])]
        if all(name in graph.makers and graph.makers[name].op_type == "Unsqueeze" for name in interpolated):
            return [norm, multiply, add], interpolated[0], interpolated[1]
    shape, name = (1, -1, 1, 1), norm.output[0]
    return [norm], graph.add(f"{name}_scale", scale.reshape(shape)), graph.add(f"{name}_shift", shift.reshape(shape))


def _is_identity(scale: NDArray[Any], shift: NDArray[Any]) -> bool:
    """Return whether a scale and a shift change nothing."""
    return bool((scale == 1).all() and not shift.any())


def _other(node: NodeProto, value: str) -> str:
    """Return the input, of a node with two, that is not `value`."""
    first, second = node.input
    return str(second if first == value else first)
