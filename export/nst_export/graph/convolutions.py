"""Rewrites of convolutions, and into convolutions."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper

from nst_export.graph.editing import Graph, attribute

BLOCK_PIXELS = 4
"""Side of the block of pixels that `last_convolution` computes at once; every network's grid is a multiple of it."""


def last_convolution(proto: ModelProto) -> int:
    """Replace a large convolution to three channels with a strided convolution to 48, and a pixel shuffle.

    Three output channels fill three of the eight or sixteen lanes of a vector register. Here one kernel computes a
    block of 4x4 pixels: the same weights sixteen times, each shifted to its pixel in a larger kernel of zeros. That
    takes more multiplications (1.8 times for 9x9), but in full registers.
    """
    graph = Graph(proto)
    count = 0
    for convolution in graph.nodes("Conv"):
        kernel = graph.constant(convolution.input[1])
        channels, channels_in, side, _ = kernel.shape
        padded = any(attribute(convolution, "pads") or [])
        if channels > 3 or side < 5 or attribute(convolution, "strides") != [1, 1] or padded:
            continue
        wide = side + BLOCK_PIXELS - 1
        shifted = np.zeros((BLOCK_PIXELS, BLOCK_PIXELS, channels, channels_in, wide, wide), np.float32)
        for row in range(BLOCK_PIXELS):
            for column in range(BLOCK_PIXELS):
                shifted[row, column, :, :, row : row + side, column : column + side] = kernel
        name = convolution.output[0]
        kernels = shifted.reshape(-1, channels_in, wide, wide)
        weights = graph.add_weights(name, kernels, convolution, times=BLOCK_PIXELS**2)
        blocks = helper.make_node(
            "Conv",
            [convolution.input[0], *weights],
            [f"{name}_blocks"],
            kernel_shape=[wide, wide],
            strides=[BLOCK_PIXELS, BLOCK_PIXELS],
        )
        shuffle = helper.make_node("DepthToSpace", [f"{name}_blocks"], [name], blocksize=BLOCK_PIXELS, mode="DCR")
        graph.replace([convolution], [blocks, shuffle])
        count += 1
    return count


def channel_factors(proto: ModelProto) -> int:
    """Compute the scales and shifts per channel that depend on the style weights by 1x1 convolutions.

    OpenVINO keeps a convolution's result with channels last, and everything else with channels first. To multiply an
    image by factors of the other layout, it reorders the image twice, which takes longer than all convolutions of the
    network. So the scales of interpolated styles become a convolution of the style weights, whose kernel is the matrix
    of scales; other factors pass through a convolution that multiplies each by 1.
    """
    graph = Graph(proto)
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in inferred.value_info}
    count = 0
    for unsqueeze in graph.nodes("Unsqueeze"):
        if not _is_computed_factor(graph, unsqueeze):
            continue
        name = unsqueeze.output[0]
        matmul = graph.private_source(unsqueeze, "MatMul")
        if matmul and matmul.input[1] in graph.constants:
            kernel = np.ascontiguousarray(graph.constant(matmul.input[1]).T[:, :, None, None])
            old, source, groups = [matmul, unsqueeze], matmul.input[0], 1
        else:
            channels = shapes[name][1].dim_value
            kernel = np.ones((channels, 1, 1, 1), np.float32)
            old, source, groups = [unsqueeze], unsqueeze.input[0], channels
        pixel, axes = f"{source}_pixel", graph.integers(2, 3)
        nodes = [] if pixel in graph.makers else [helper.make_node("Unsqueeze", [source, axes], [pixel])]
        weights = graph.add(f"ones_{groups}" if groups > 1 else f"{name}_kernel", kernel)
        nodes.append(helper.make_node("Conv", [pixel, weights], [name], kernel_shape=[1, 1], group=groups))
        graph.replace(old, nodes)
        count += 1
    return count


def _is_computed_factor(graph: Graph, unsqueeze: NodeProto) -> bool:
    """Return whether `unsqueeze` shapes computed factors, one per channel, that only elementwise operators read."""
    computed = unsqueeze.input[0] in graph.makers and graph.constant(unsqueeze.input[1]).tolist() == [2, 3]
    readers = graph.readers.get(unsqueeze.output[0], [])
    return computed and all(node.op_type in ("Add", "Div", "Mul", "Sub") for node in readers)
