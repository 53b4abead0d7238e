"""Rewrites of an exported graph that change its time and not its answer.

Each looks for a pattern, replaces every one it finds, and says how many those were. Which of them
pays was measured for each engine (`nst-bench export`, docs/export.md); all pass the same gate (`verify`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

Engine = Literal["cpu", "gpu", "tensorrt"]

BLOCK = 4
"""Side of the block of pixels that `last_convolution` makes at once; every network's grid is a multiple of it."""


def upsample(proto: ModelProto) -> int:
    """Nearest doubling, reflection by one and a 3x3 convolution as one 2x2 convolution on the small picture.

    Of an output row 2i the kernel's rows lie on the small rows i-1, i and i, of a row 2i+1 on i, i and i+1; so each of
    the four phases has a kernel of 2x2, and reflecting the doubled picture is repeating the small one's edge. One
    convolution gives all phases, as channels, from windows that begin at row i-1. The pixel shuffle of them
    lies one pixel off, which the slice takes away. 4/9 of the multiplications.
    """
    graph = _Graph(proto)
    done = 0
    for convolution in graph.nodes("Conv"):
        pad = graph.private_source(convolution, "Pad")
        resize = graph.private_source(pad, "Resize") if pad else None
        kernel = graph.constant(convolution.input[1])
        if not (pad and resize and kernel.shape[2:] == (3, 3) and _attribute(convolution, "strides") == [1, 1]):
            continue
        if not _doubles(graph, resize) or _reflection(graph, pad) != 1:
            continue
        # The window's first output belongs to the odd row before it, whose taps are w0 + w1 and w2.
        taps = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], np.float32)
        phases = np.einsum("pik,ockl,qjl->pqocij", taps, kernel, taps)
        name = convolution.output[0]
        weights = graph.add_weights(name, phases.reshape(-1, kernel.shape[1], 2, 2), convolution, times=4)
        edge, ahead, behind, axes = (
            graph.integers(*values) for values in ((0, 0, 1, 1, 0, 0, 1, 1), (1, 1), (-1, -1), (2, 3))
        )
        graph.replace(
            [resize, pad, convolution],
            [
                helper.make_node("Pad", [resize.input[0], edge], [f"{name}_edge"], mode="edge"),
                helper.make_node("Conv", [f"{name}_edge", *weights], [f"{name}_phases"], kernel_shape=[2, 2]),
                helper.make_node("DepthToSpace", [f"{name}_phases"], [f"{name}_all"], blocksize=2, mode="DCR"),
                helper.make_node("Slice", [f"{name}_all", ahead, behind, axes], [name]),
            ],
        )
        done += 1
    return done


def last_convolution(proto: ModelProto) -> int:
    """A large convolution to three channels as one with a stride of 4 to 48, and a pixel shuffle.

    Three outputs fill three of the eight or sixteen lanes of a vector register. Here one kernel
    makes a block of 4x4 pixels: the same weights sixteen times, each shifted to its pixel in a larger kernel of zeros.
    More multiplications (1.8 times for 9x9), all of them in full registers.
    """
    graph = _Graph(proto)
    done = 0
    for convolution in graph.nodes("Conv"):
        kernel = graph.constant(convolution.input[1])
        channels, channels_in, side, _ = kernel.shape
        if channels > 3 or side < 5 or _attribute(convolution, "strides") != [1, 1] or any(_pads(convolution)):
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
    graph = _Graph(proto)
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
    graph = _Graph(proto)
    done = 0
    for pad in graph.nodes("Pad"):
        widths = graph.constant(pad.input[1]).tolist()
        if _attribute(pad, "mode") != b"wrap" or widths[2:4] != widths[6:8]:
            continue
        value, nodes = pad.input[0], []
        for axis in (2, 3):
            name = pad.output[0] if axis == 3 else f"{pad.output[0]}_rows"
            width, end = graph.integers(widths[axis]), graph.integers(2**31 - 1)
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


REWRITES: dict[str, Callable[[ModelProto], int]] = {
    "upsample": upsample,
    "last-convolution": last_convolution,
    "doubling": doubling,
    "wrap": wrap,
}
"""By name, in the order in which they run."""

FOR: dict[Engine, tuple[str, ...]] = {
    "cpu": ("upsample", "last-convolution", "wrap"),
    "gpu": ("wrap",),
    "tensorrt": ("upsample", "doubling", "wrap"),
}
"""What an engine gets. CPU: measured. GPU: none was measured to pay. TensorRT: without these it builds nothing
for dynamic sides; the last convolution's, which costs multiplications, was not measured there."""


def rewrite(proto: ModelProto, names: Sequence[str]) -> dict[str, int]:
    """Apply the rewrites called `names`; how many places each changed."""
    return {name: change(proto) for name, change in REWRITES.items() if name in names}


class _Graph:
    """An ONNX graph to be changed: who makes a value, who reads it, and constants as arrays."""

    def __init__(self, proto: ModelProto) -> None:
        self.graph = proto.graph
        self.constants = {one.name: one for one in self.graph.initializer}
        self._index()

    def _index(self) -> None:
        self.makers = {value: node for node in self.graph.node for value in node.output}
        self.readers: dict[str, int] = {}
        for value in (value for node in self.graph.node for value in node.input):
            self.readers[value] = self.readers.get(value, 0) + 1

    def nodes(self, operator: str) -> list[NodeProto]:
        return [node for node in self.graph.node if node.op_type == operator]

    def private_source(self, node: NodeProto, operator: str) -> NodeProto | None:
        """The node that makes the first input of `node`, if it is an `operator` and nobody else reads it."""
        maker = self.makers.get(node.input[0])
        return maker if maker and maker.op_type == operator and self.readers[node.input[0]] == 1 else None

    def constant(self, name: str) -> NDArray[Any]:
        """The constant `name`; an empty array for a value that is none."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else np.empty(0)

    def add(self, name: str, values: NDArray[Any]) -> str:
        if name not in self.constants:
            self.graph.initializer.append(numpy_helper.from_array(values, name))
            self.constants[name] = self.graph.initializer[-1]
        return name

    def integers(self, *values: int) -> str:
        """A constant of these, shared by all who ask for it."""
        return self.add(f"integers_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def add_weights(self, name: str, kernel: NDArray[Any], convolution: NodeProto, *, times: int) -> list[str]:
        """Names of a new kernel and, if `convolution` has one, its bias repeated for the new channels."""
        weights = [self.add(f"{name}_kernel", kernel.astype(np.float32))]
        if len(convolution.input) > 2:
            weights.append(self.add(f"{name}_bias", np.tile(self.constant(convolution.input[2]), times)))
        return weights

    def replace(self, old: Sequence[NodeProto], new: Sequence[NodeProto]) -> None:
        """`new` in the place of `old`, whose last node comes last; constants that nobody reads go."""
        outputs = {value for node in old for value in node.output}
        last = old[-1].output[0]
        nodes = list(self._replaced(outputs, last, new))
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self._index()
        for one in [one for one in self.graph.initializer if one.name not in self.readers]:
            self.graph.initializer.remove(one)
            del self.constants[one.name]
        gone = outputs - {last}
        for value in [value for value in self.graph.value_info if value.name in gone]:
            self.graph.value_info.remove(value)

    def _replaced(self, outputs: set[str], last: str, new: Sequence[NodeProto]) -> Iterator[NodeProto]:
        for node in self.graph.node:
            if node.output[0] == last:
                yield from new
            elif node.output[0] not in outputs:
                yield node


def _attribute(node: NodeProto, name: str) -> Any:
    found = [one for one in node.attribute if one.name == name]
    return helper.get_attribute_value(found[0]) if found else None


def _pads(convolution: NodeProto) -> list[int]:
    return list(_attribute(convolution, "pads") or [])


def _doubles(graph: _Graph, resize: NodeProto) -> bool:
    scales = graph.constant(resize.input[2]) if len(resize.input) > 2 else np.empty(0)
    return _attribute(resize, "mode") == b"nearest" and scales.tolist() == [1, 1, 2, 2]


def _reflection(graph: _Graph, pad: NodeProto) -> int | None:
    """By how many pixels `pad` reflects all four sides, None if it does anything else."""
    widths = graph.constant(pad.input[1]).tolist()
    if _attribute(pad, "mode") != b"reflect" or len(widths) != 8:
        return None
    return int(widths[2]) if widths == [0, 0, *[widths[2]] * 2, 0, 0, *[widths[2]] * 2] else None
