"""Rewrites of an exported graph that change its time and not its answer.

Each looks for a pattern, replaces every one it finds, and says how many those were. Which of them
pays was measured for each engine (`nst-bench export`, docs/export.md); all pass the same gate (`verify`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from nst_export import norms
from nst_export.graph_edits import Graph, attribute

Engine = Literal["cpu", "gpu", "tensorrt"]

END = 2**31 - 1
"""Where a slice ends that ends with its axis."""

BLOCK = 4
"""Side of the block of pixels that `last_convolution` makes at once; every network's grid is a multiple of it."""


def upsample(proto: ModelProto) -> int:
    """Nearest doubling, reflection by one and a 3x3 convolution as one 2x2 convolution on the small picture.

    Of an output row 2i the kernel's rows lie on the small rows i-1, i and i, of a row 2i+1 on i, i and i+1; so each of
    the four phases has a kernel of 2x2, and reflecting the doubled picture is repeating the small one's edge. One
    convolution gives all phases, as channels, from windows that begin at row i-1. The pixel shuffle of them
    lies one pixel off, which the slice takes away. 4/9 of the multiplications.

    Not for TensorRT: 10.15 fuses the shuffle and the slice into one kernel, which forgets where the slice begins if
    all sides are fixed. The two below have no slice there; on a CPU they take some hundredths longer.
    """
    # The window's first output belongs to the odd row before it, whose taps are w0 + w1 and w2.
    taps = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], np.float32)
    graph = Graph(proto)
    done = 0
    for resize, pad, convolution in _doubled_convolutions(graph):
        name, weights = convolution.output[0], _phases(graph, convolution, taps)
        ahead, behind, axes = (graph.integers(*values) for values in ((1, 1), (-1, -1), (2, 3)))
        graph.replace(
            [resize, pad, convolution],
            [
                _edge(graph, resize, name),
                helper.make_node("Conv", [f"{name}_edge", *weights], [f"{name}_phases"], kernel_shape=[2, 2]),
                helper.make_node("DepthToSpace", [f"{name}_phases"], [f"{name}_all"], blocksize=2, mode="DCR"),
                helper.make_node("Slice", [f"{name}_all", ahead, behind, axes], [name]),
            ],
        )
        done += 1
    return done


def upsample_windows(proto: ModelProto) -> int:
    """`upsample` with a slice of each phase before the shuffle, and none behind it."""
    taps = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)
    graph = Graph(proto)
    done = 0
    for resize, pad, convolution in _doubled_convolutions(graph):
        name, weights = convolution.output[0], _phases(graph, convolution, taps)
        channels = graph.constant(convolution.input[1]).shape[0]
        windows = []
        for phase, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            begin = graph.integers(phase * channels, row, column)
            end = graph.integers((phase + 1) * channels, *(-1 if side == 0 else END for side in (row, column)))
            cut = [f"{name}_phases", begin, end, graph.integers(1, 2, 3)]
            windows.append(helper.make_node("Slice", cut, [f"{name}_window_{phase}"]))
        graph.replace(
            [resize, pad, convolution],
            [
                _edge(graph, resize, name),
                helper.make_node("Conv", [f"{name}_edge", *weights], [f"{name}_phases"], kernel_shape=[2, 2]),
                *windows,
                helper.make_node("Concat", [node.output[0] for node in windows], [f"{name}_windows"], axis=1),
                helper.make_node("DepthToSpace", [f"{name}_windows"], [name], blocksize=2, mode="DCR"),
            ],
        )
        done += 1
    return done


def upsample_3x3(proto: ModelProto) -> int:
    """`upsample` with kernels of 3x3, in which each phase's 2x2 taps have their place, so that nothing is cut.

    As many multiplications as without a rewrite, five of nine with zero, and no copies: for engines whose convolutions
    cost less than a pass over memory.
    """
    taps = np.array([[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]], np.float32)
    graph = Graph(proto)
    done = 0
    for resize, pad, convolution in _doubled_convolutions(graph):
        name, weights = convolution.output[0], _phases(graph, convolution, taps)
        graph.replace(
            [resize, pad, convolution],
            [
                _edge(graph, resize, name),
                helper.make_node("Conv", [f"{name}_edge", *weights], [f"{name}_phases"], kernel_shape=[3, 3]),
                helper.make_node("DepthToSpace", [f"{name}_phases"], [name], blocksize=2, mode="DCR"),
            ],
        )
        done += 1
    return done


def _doubled_convolutions(graph: Graph) -> Iterator[tuple[NodeProto, NodeProto, NodeProto]]:
    """Every nearest doubling with the reflection by one and the 3x3 convolution that alone read it."""
    for convolution in graph.nodes("Conv"):
        pad = graph.private_source(convolution, "Pad")
        resize = graph.private_source(pad, "Resize") if pad else None
        kernel = graph.constant(convolution.input[1])
        if not (pad and resize and kernel.shape[2:] == (3, 3) and attribute(convolution, "strides") == [1, 1]):
            continue
        if _doubles(graph, resize) and _reflection(graph, pad) == 1:
            yield resize, pad, convolution


def _phases(graph: Graph, convolution: NodeProto, taps: NDArray[np.float32]) -> list[str]:
    """The four phases' kernels as one, channels `(2 row + column) C + c`, and their bias.

    `taps` are for an even and an odd row how much of the kernel's rows lies on each small row; of columns alike.
    """
    kernel = graph.constant(convolution.input[1])
    phases = np.einsum("pik,ockl,qjl->pqocij", taps, kernel, taps)
    phases = phases.reshape(-1, kernel.shape[1], *phases.shape[-2:])
    return graph.add_weights(convolution.output[0], phases, convolution, times=4)


def _edge(graph: Graph, resize: NodeProto, name: str) -> NodeProto:
    """The small picture with its edge repeated once on every side."""
    widths = graph.integers(0, 0, 1, 1, 0, 0, 1, 1)
    return helper.make_node("Pad", [resize.input[0], widths], [f"{name}_edge"], mode="edge")


def last_convolution(proto: ModelProto) -> int:
    """A large convolution to three channels as one with a stride of 4 to 48, and a pixel shuffle.

    Three outputs fill three of the eight or sixteen lanes of a vector register. Here one kernel
    makes a block of 4x4 pixels: the same weights sixteen times, each shifted to its pixel in a larger kernel of zeros.
    More multiplications (1.8 times for 9x9), all of them in full registers.
    """
    graph = Graph(proto)
    done = 0
    for convolution in graph.nodes("Conv"):
        kernel = graph.constant(convolution.input[1])
        channels, channels_in, side, _ = kernel.shape
        if channels > 3 or side < 5 or attribute(convolution, "strides") != [1, 1] or any(_pads(convolution)):
            continue
        wide = side + BLOCK - 1
        shifted = np.zeros((BLOCK, BLOCK, channels, channels_in, wide, wide), np.float32)
        for row in range(BLOCK):
            for column in range(BLOCK):
                shifted[row, column, :, :, row : row + side, column : column + side] = kernel
        name = convolution.output[0]
        weights = graph.add_weights(name, shifted.reshape(-1, channels_in, wide, wide), convolution, times=BLOCK**2)
        blocks = helper.make_node(
            *("Conv", [convolution.input[0], *weights], [f"{name}_blocks"]),
            kernel_shape=[wide, wide],
            strides=[BLOCK, BLOCK],
        )
        shuffle = helper.make_node("DepthToSpace", [f"{name}_blocks"], [name], blocksize=BLOCK, mode="DCR")
        graph.replace([convolution], [blocks, shuffle])
        done += 1
    return done


def doubling(proto: ModelProto) -> int:
    """Nearest doubling as a pixel shuffle of four copies: TensorRT infers no shape for a Resize of dynamic sides."""
    graph = Graph(proto)
    done = 0
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
        done += 1
    return done


def wrap(proto: ModelProto) -> int:
    """Circular padding as slices and joins: operator set 18 has no such mode, nor has OpenVINO."""
    graph = Graph(proto)
    done = 0
    for pad in graph.nodes("Pad"):
        widths = graph.constant(pad.input[1]).tolist()
        if attribute(pad, "mode") != b"wrap" or widths[2:4] != widths[6:8]:
            continue
        value, nodes = pad.input[0], []
        for axis in (2, 3):
            name = pad.output[0] if axis == 3 else f"{pad.output[0]}_rows"
            width, end = graph.integers(widths[axis]), graph.integers(END)
            back, zero, along = graph.integers(-widths[axis]), graph.integers(0), graph.integers(axis)
            nodes += [
                helper.make_node("Slice", [value, back, end, along], [f"{name}_before"]),
                helper.make_node("Slice", [value, zero, width, along], [f"{name}_after"]),
                helper.make_node("Concat", [f"{name}_before", value, f"{name}_after"], [name], axis=axis),
            ]
            value = name
        graph.replace([pad], nodes)
        done += 1
    return done


def adjacent_pads(proto: ModelProto) -> int:
    """The padding to the network's grid behind the picture's arithmetic, next to the first convolution's own.

    What computes each value alone may change places with a copy of values. Side by side the two pads are one copy for
    an engine that fuses copies, and in half precision both copy half. They do not become one pad: the second reflects
    what the first has appended, so that one reflection of both widths gives other pixels beyond the grid.
    """
    graph = Graph(proto)
    done = 0
    for pad in graph.nodes("Pad"):
        if pad.input[1] in graph.constants:
            continue
        between: list[NodeProto] = []
        reader = graph.only_reader(pad)
        while reader and _computes_each_value(graph, reader):
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
            graph.forget(node.output[0])
        graph.replace([pad, *between], [*moved, last])
        done += 1
    return done


def _computes_each_value(graph: Graph, node: NodeProto) -> bool:
    """Whether every value of the result comes of the value at its place alone."""
    single = all(graph.constant(name).size == 1 and name in graph.constants for name in node.input[1:])
    return single and node.op_type in ("Add", "Cast", "Div", "Mul", "Sub")


def channel_factors(proto: ModelProto) -> int:
    """Scales and shifts that the graph itself computes, a number a channel, as results of 1x1 convolutions.

    OpenVINO lays a convolution's result out channels last, and all else channels first. Where a picture is multiplied
    by numbers of the other layout, it reorders the picture, twice, which takes longer than all convolutions of the
    network. So a mix of styles' scales is a convolution of the mix, whose kernel is the matrix, and other numbers pass
    through one that multiplies each by 1.
    """
    graph = Graph(proto)
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in inferred.value_info}
    done = 0
    for unsqueeze in graph.nodes("Unsqueeze"):
        readers = graph.readers.get(unsqueeze.output[0], [])
        computed = unsqueeze.input[0] in graph.makers and graph.constant(unsqueeze.input[1]).tolist() == [2, 3]
        if not computed or not all(node.op_type in ("Add", "Div", "Mul", "Sub") for node in readers):
            continue
        name, axes = unsqueeze.output[0], graph.integers(2, 3)
        matmul = graph.private_source(unsqueeze, "MatMul")
        if matmul and matmul.input[1] in graph.constants:
            kernel = np.ascontiguousarray(graph.constant(matmul.input[1]).T[:, :, None, None])
            old, source, groups = [matmul, unsqueeze], matmul.input[0], 1
        else:
            channels = shapes[name][1].dim_value
            kernel = np.ones((channels, 1, 1, 1), np.float32)
            old, source, groups = [unsqueeze], unsqueeze.input[0], channels
        pixel = f"{source}_pixel"
        nodes = [] if pixel in graph.makers else [helper.make_node("Unsqueeze", [source, axes], [pixel])]
        weights = graph.add(f"ones_{groups}" if groups > 1 else f"{name}_kernel", kernel)
        nodes.append(helper.make_node("Conv", [pixel, weights], [name], kernel_shape=[1, 1], group=groups))
        graph.replace(old, nodes)
        done += 1
    return done


REWRITES: dict[str, Callable[[ModelProto], int]] = {
    "upsample": upsample,
    "upsample-windows": upsample_windows,
    "upsample-3x3": upsample_3x3,
    "last-convolution": last_convolution,
    "doubling": doubling,
    "wrap": wrap,
    "adjacent-pads": adjacent_pads,
    "channel-factors": channel_factors,
    "group-norm": norms.group,
    "decomposed-norm": norms.decomposed,
}
"""By name, in the order in which they run; what one has changed the next does not find any more."""

FOR: dict[Engine, tuple[str, ...]] = {
    "cpu": ("upsample", "last-convolution", "wrap", "channel-factors"),
    "gpu": ("wrap",),
    "tensorrt": ("upsample-3x3", "doubling", "wrap", "adjacent-pads"),
}
"""What an engine gets. CPU: measured. GPU: none was measured to pay. TensorRT: without these it builds nothing
for dynamic sides; the last convolution's, which costs multiplications, was not measured there, and neither were the
other forms of the normalisation, so that the graph's own stays."""


UNSAFE: dict[Engine, dict[str, str]] = {"tensorrt": {"upsample": "upsample-3x3 or upsample-windows"}}
"""By engine: rewrites that it may run wrongly, and what is there in their place."""


def rewrite(proto: ModelProto, names: Sequence[str]) -> dict[str, int]:
    """Apply the rewrites called `names`; how many places each changed."""
    return {name: change(proto) for name, change in REWRITES.items() if name in names}


def _pads(convolution: NodeProto) -> list[int]:
    return list(attribute(convolution, "pads") or [])


def _doubles(graph: Graph, resize: NodeProto) -> bool:
    scales = graph.constant(resize.input[2]) if len(resize.input) > 2 else np.empty(0)
    return attribute(resize, "mode") == b"nearest" and scales.tolist() == [1, 1, 2, 2]


def _reflection(graph: Graph, pad: NodeProto) -> int | None:
    """By how many pixels `pad` reflects all four sides, None if it does anything else."""
    widths = graph.constant(pad.input[1]).tolist()
    if attribute(pad, "mode") != b"reflect" or len(widths) != 8:
        return None
    return int(widths[2]) if widths == [0, 0, *[widths[2]] * 2, 0, 0, *[widths[2]] * 2] else None
