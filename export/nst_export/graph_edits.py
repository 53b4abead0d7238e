"""Editing an ONNX graph in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper


class Graph:
    """The graph of `proto`, to be changed: who makes a value, who reads it, and constants as arrays."""

    def __init__(self, proto: ModelProto) -> None:
        self.graph = proto.graph
        self.constants = {one.name: one for one in self.graph.initializer}
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
        """The node that makes the first input of `node`, if it is an `operator` and nobody else reads it."""
        maker = self.makers.get(node.input[0])
        return maker if maker and maker.op_type == operator and len(self.readers[node.input[0]]) == 1 else None

    def only_reader(self, node: NodeProto) -> NodeProto | None:
        """The node that reads the result of `node`, if there is only one."""
        found = self.readers.get(node.output[0], [])
        return found[0] if len(found) == 1 else None

    def constant(self, name: str) -> NDArray[Any]:
        """The constant `name`; an empty array for a value that is none."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else np.empty(0)

    def add(self, name: str, values: NDArray[Any]) -> str:
        """A constant of this name, made if it is not there; its name."""
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
        for name in outputs - {last}:
            self.forget(name)

    def forget(self, name: str) -> None:
        """Drop what the graph notes of a value's type and shape, when the value is gone or has another shape."""
        for value in [value for value in self.graph.value_info if value.name == name]:
            self.graph.value_info.remove(value)

    def _replaced(self, outputs: set[str], last: str, new: Sequence[NodeProto]) -> Iterator[NodeProto]:
        for node in self.graph.node:
            if node.output[0] == last:
                yield from new
            elif node.output[0] not in outputs:
                yield node


def attribute(node: NodeProto, name: str) -> Any:
    """The value of an attribute, None if the node has none of this name; strings are bytes."""
    found = [one for one in node.attribute if one.name == name]
    return helper.get_attribute_value(found[0]) if found else None
