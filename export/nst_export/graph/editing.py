"""Edit an ONNX graph in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

AXIS_END = 2**31 - 1
"""The end of a `Slice` to the end of its axis."""


class Graph:
    """The graph of `proto` for editing: the node that makes each value, the nodes that read it, the constants."""

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
        """Return all nodes of an operator, in the graph's order."""
        return [node for node in self.graph.node if node.op_type == operator]

    def private_source(self, node: NodeProto, operator: str) -> NodeProto | None:
        """Return the node that makes the first input of `node`, if it is an `operator` that no other node reads."""
        maker = self.makers.get(node.input[0])
        return maker if maker and maker.op_type == operator and len(self.readers[node.input[0]]) == 1 else None

    def only_reader(self, node: NodeProto) -> NodeProto | None:
        """Return the node that reads the result of `node`, if only one does."""
        readers = self.readers.get(node.output[0], [])
        return readers[0] if len(readers) == 1 else None

    def constant(self, name: str) -> NDArray[Any]:
        """Return the constant `name`; an empty array if the value is not a constant."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else np.empty(0)

    def add(self, name: str, values: NDArray[Any]) -> str:
        """Add a constant unless the name exists; return the name."""
        if name not in self.constants:
            self.graph.initializer.append(numpy_helper.from_array(values, name))
            self.constants[name] = self.graph.initializer[-1]
        return name

    def integers(self, *values: int) -> str:
        """Return the name of a constant with these values, shared by all nodes that need it."""
        return self.add(f"integers_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def add_weights(self, name: str, kernel: NDArray[Any], convolution: NodeProto, *, times: int) -> list[str]:
        """Add a kernel and, if `convolution` has a bias, its bias repeated for the new channels; return their names."""
        weights = [self.add(f"{name}_kernel", kernel.astype(np.float32))]
        if len(convolution.input) > 2:
            weights.append(self.add(f"{name}_bias", np.tile(self.constant(convolution.input[2]), times)))
        return weights

    def replace(self, old: Sequence[NodeProto], new: Sequence[NodeProto]) -> None:
        """Replace the nodes `old` with `new`, at the place of the last, and remove constants that no node reads."""
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
        """Drop the recorded type and shape of a value that is removed or has another shape."""
        for value in [value for value in self.graph.value_info if value.name == name]:
            self.graph.value_info.remove(value)

    def _replaced(self, outputs: set[str], last: str, new: Sequence[NodeProto]) -> Iterator[NodeProto]:
        for node in self.graph.node:
            if node.output[0] == last:
                yield from new
            elif node.output[0] not in outputs:
                yield node


def attribute(node: NodeProto, name: str) -> Any:
    """Return the value of an attribute, None if the node does not have it; strings are bytes."""
    found = [entry for entry in node.attribute if entry.name == name]
    return helper.get_attribute_value(found[0]) if found else None
