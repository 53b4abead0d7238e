"""Rewrites of nearest-neighbour upsampling by two."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from nst_export.graph.editing import AXIS_END, Graph, attribute


def upsample(proto: ModelProto) -> int:
    """Replace upsampling, reflection by one and a 3x3 convolution with one 2x2 convolution on the small image.

    For an output row 2i the kernel's rows cover the small rows i-1, i and i, for a row 2i+1 the rows i, i and i+1. So
    each of the four phases has a 2x2 kernel, and reflecting the upsampled image is repeating the edge of the small
    image. A single convolution computes all phases as channels, from windows that start at row i-1. Their pixel shuffle
    is shifted by a pixel, which a slice removes. It takes 4/9 of the multiplications.

    It is not for TensorRT: 10.15 fuses the shuffle and the slice into one kernel, which ignores the start of the slice
    if all sides are fixed. The two variants below have no such slice; on a CPU they take a few percent longer.
    """
    # The first output of a window belongs to the odd row before it, whose taps are w0 + w1 and w2.
    taps = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], np.float32)
    graph = Graph(proto)
    count = 0
    for resize, pad, convolution in _upsampled_convolutions(graph):
        name, weights = convolution.output[0], _phase_weights(graph, convolution, taps)
        begins, ends, axes = graph.integers(1, 1), graph.integers(-1, -1), graph.integers(2, 3)
        graph.replace(
            [resize, pad, convolution],
            [
                _edge_pad(graph, resize, name),
                helper.make_node("Conv", [f"{name}_edge", *weights], [f"{name}_phases"], kernel_shape=[2, 2]),
                helper.make_node("DepthToSpace", [f"{name}_phases"], [f"{name}_all"], blocksize=2, mode="DCR"),
                helper.make_node("Slice", [f"{name}_all", begins, ends, axes], [name]),
            ],
        )
        count += 1
    return count


def upsample_windows(proto: ModelProto) -> int:
    """Rewrite as `upsample` does, with a slice of each phase before the shuffle and none after it."""
    taps = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)
    graph = Graph(proto)
    count = 0
    for resize, pad, convolution in _upsampled_convolutions(graph):
        name, weights = convolution.output[0], _phase_weights(graph, convolution, taps)
        channels = graph.constant(convolution.input[1]).shape[0]
        windows = []
        for phase, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            begin = graph.integers(phase * channels, row, column)
            end = graph.integers((phase + 1) * channels, *(-1 if side == 0 else AXIS_END for side in (row, column)))
            window = [f"{name}_phases", begin, end, graph.integers(1, 2, 3)]
            windows.append(helper.make_node("Slice", window, [f"{name}_window_{phase}"]))
        graph.replace(
            [resize, pad, convolution],
            [
                _edge_pad(graph, resize, name),
                helper.make_node("Conv", [f"{name}_edge", *weights], [f"{name}_phases"], kernel_shape=[2, 2]),
                *windows,
                helper.make_node("Concat", [node.output[0] for node in windows], [f"{name}_windows"], axis=1),
                helper.make_node("DepthToSpace", [f"{name}_windows"], [name], blocksize=2, mode="DCR"),
            ],
        )
        count += 1
    return count


def upsample_3x3(proto: ModelProto) -> int:
    """Rewrite as `upsample` does, with the 2x2 taps of each phase in a 3x3 kernel, so that no slice is needed.

    It takes as many multiplications as without a rewrite (five of nine by zero) and copies nothing, for engines whose
    convolutions cost less than a pass over memory.
    """
    taps = np.array([[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]], np.float32)
    graph = Graph(proto)
    count = 0
    for resize, pad, convolution in _upsampled_convolutions(graph):
        name, weights = convolution.output[0], _phase_weights(graph, convolution, taps)
        graph.replace(
            [resize, pad, convolution],
            [
                _edge_pad(graph, resize, name),
                helper.make_node("Conv", [f"{name}_edge", *weights], [f"{name}_phases"], kernel_shape=[3, 3]),
                helper.make_node("DepthToSpace", [f"{name}_phases"], [name], blocksize=2, mode="DCR"),
            ],
        )
        count += 1
    return count


def doubling(proto: ModelProto) -> int:
    """Replace upsampling with a pixel shuffle of four copies: TensorRT infers no shape for a dynamic Resize."""
    graph = Graph(proto)
    count = 0
    for resize in graph.nodes("Resize"):
        if not _doubles(graph, resize):
            continue
        name = resize.output[0]
        graph.replace(
            [resize],
            [
                helper.make_node("Concat", [resize.input[0]] * 4, [f"{name}_copies"], axis=1),
                helper.make_node("DepthToSpace", [f"{name}_copies"], [name], blocksize=2, mode="DCR"),
            ],
        )
        count += 1
    return count


def _upsampled_convolutions(graph: Graph) -> Iterator[tuple[NodeProto, NodeProto, NodeProto]]:
    """Yield every 3x3 convolution with the Resize and the reflecting Pad before it, which no other node reads."""
    for convolution in graph.nodes("Conv"):
        pad = graph.private_source(convolution, "Pad")
        resize = graph.private_source(pad, "Resize") if pad else None
        kernel = graph.constant(convolution.input[1])
        if not (pad and resize and kernel.shape[2:] == (3, 3) and attribute(convolution, "strides") == [1, 1]):
            continue
        if _doubles(graph, resize) and _reflection(graph, pad) == 1:
            yield resize, pad, convolution


def _phase_weights(graph: Graph, convolution: NodeProto, taps: NDArray[np.float32]) -> list[str]:
    """Return the kernels of the four phases as one, with channels `(2 row + column) C + c`, and their bias.

    `taps` are, for an even and an odd row, the parts of each kernel row on each small row; the same for columns.
    """
    kernel = graph.constant(convolution.input[1])
    phases = np.einsum("pik,ockl,qjl->pqocij", taps, kernel, taps)
    phases = phases.reshape(-1, kernel.shape[1], *phases.shape[-2:])
    return graph.add_weights(convolution.output[0], phases, convolution, times=4)


def _edge_pad(graph: Graph, resize: NodeProto, name: str) -> NodeProto:
    """Return a pad that repeats the edge of the small image once on every side."""
    widths = graph.integers(0, 0, 1, 1, 0, 0, 1, 1)
    return helper.make_node("Pad", [resize.input[0], widths], [f"{name}_edge"], mode="edge")


def _doubles(graph: Graph, resize: NodeProto) -> bool:
    """Return whether `resize` upsamples both sides by two, with nearest neighbours."""
    scales = graph.constant(resize.input[2]) if len(resize.input) > 2 else np.empty(0)
    return attribute(resize, "mode") == b"nearest" and scales.tolist() == [1, 1, 2, 2]


def _reflection(graph: Graph, pad: NodeProto) -> int | None:
    """Return by how many pixels `pad` reflects all four sides; None if it does anything else."""
    widths = graph.constant(pad.input[1]).tolist()
    if attribute(pad, "mode") != b"reflect" or len(widths) != 8:
        return None
    width = widths[2]
    return int(width) if widths == [0, 0, width, width, 0, 0, width, width] else None
