"""Editing an ONNX graph in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

AXIS_END = 2**31 - 1
"""The end of a `Slice` that goes to the end of its axis."""


class Graph:
    """The graph of `proto`, to be edited: which node makes a value, which nodes read it, and constants as arrays."""

    def __init__(self, proto: ModelProto) -> None:
        self.graph = proto.graph
        self.constants = {constant.name: constant for constant in self.graph.initializer}
        self._index()

    def _index(self) -> None:
        self.makers = {value: node for node in self.graph.node for value in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.graph.node:
            for value in node.input:
                self.readers.setdefault(value, []).append(node)

    def nodes(self, operator: str) -> list[NodeProto]:
        """All nodes of an operator, in the graph's order."""
        return [node for node in self.graph.node if node.op_type == operator]

    def private_source(self, node: NodeProto, operator: str) -> NodeProto | None:
        """The node that makes the first input of `node`, if it is an `operator` and no other node reads it."""
        maker = self.makers.get(node.input[0])
        return maker if maker and maker.op_type == operator and len(self.readers[node.input[0]]) == 1 else None

    def only_reader(self, node: NodeProto) -> NodeProto | None:
        """The node that reads the result of `node`, if there is only one node that does."""
        readers = self.readers.get(node.output[0], [])
        return readers[0] if len(readers) == 1 else None

    def constant(self, name: str) -> NDArray[Any]:
        """The constant `name`; an empty array for a value that is no constant."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else np.empty(0)

    def add(self, name: str, values: NDArray[Any]) -> str:
        """Add a constant unless there is one of this name; return the name."""
        if name not in self.constants:
            self.graph.initializer.append(numpy_helper.from_array(values, name))
            self.constants[name] = self.graph.initializer[-1]
        return name

    def integers(self, *values: int) -> str:
        """The name of a constant of these values, shared by all nodes that need it."""
        return self.add(f"integers_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def add_weights(self, name: str, kernel: NDArray[Any], convolution: NodeProto, *, times: int) -> list[str]:
        """Add a kernel and, if `convolution` has a bias, its bias repeated for the new channels; return their names."""
        weights = [self.add(f"{name}_kernel", kernel.astype(np.float32))]
        if len(convolution.input) > 2:
            weights.append(self.add(f"{name}_bias", np.tile(self.constant(convolution.input[2]), times)))
        return weights

    def replace(self, old: Sequence[NodeProto], new: Sequence[NodeProto]) -> None:
        """Put `new` in the place of the last node of `old`, and remove `old` and constants that no node reads."""
        outputs = {value for node in old for value in node.output}
        last = old[-1].output[0]
        nodes = list(self._replaced(outputs, last, new))
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self._index()
        for constant in [constant for constant in self.graph.initializer if constant.name not in self.readers]:
            self.graph.initializer.remove(constant)
            del self.constants[constant.name]
        for name in outputs - {last}:
            self.forget_type(name)

    def forget_type(self, name: str) -> None:
        """Drop the graph's note of a value's type and shape, when the value is gone or has another shape."""
        for value in [value for value in self.graph.value_info if value.name == name]:
            self.graph.value_info.remove(value)

    def _replaced(self, outputs: set[str], last: str, new: Sequence[NodeProto]) -> Iterator[NodeProto]:
        for node in self.graph.node:
            if node.output[0] == last:
                yield from new
            elif node.output[0] not in outputs:
                yield node


def attribute(node: NodeProto, name: str) -> Any:
    """The value of an attribute, None if the node has no attribute of this name; strings are bytes."""
    found = [entry for entry in node.attribute if entry.name == name]
    return helper.get_attribute_value(found[0]) if found else None
