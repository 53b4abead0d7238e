"""gRPC messages of an inference whose tensors are copied once on their way out and not at all on their way in.

Protobuf copies bytes into a message, out of it, and into what is sent. Tensors are fields of their own at the end of
a message, so here they are joined to the encoded rest, and cut off before the rest is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from math import prod
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2
from tritonclient.utils import triton_to_np_dtype

_BYTES = 2
"""Protobuf's wire type of fields that have a length."""

_TENSORS_OUT = service_pb2.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number << 3 | _BYTES
_TENSORS_IN = service_pb2.ModelInferResponse.DESCRIPTOR.fields_by_name["raw_output_contents"].number << 3 | _BYTES


def encoded(message: Any, tensors: Sequence[npt.NDArray[Any]]) -> bytes:
    """A `ModelInferRequest` with its tensors, which must be contiguous, as its `raw_input_contents`."""
    parts: list[Any] = [message.SerializeToString()]
    for tensor in tensors:
        parts += [bytes([_TENSORS_OUT]), _varint(tensor.nbytes), bytes_of(tensor)]
    return b"".join(parts)


def bytes_of(tensor: npt.NDArray[Any]) -> memoryview:
    """The bytes of a contiguous tensor, not copied."""
    content: Any = tensor.reshape(-1).view(np.uint8).data
    return cast(memoryview, content)


def decoded(data: bytes) -> tuple[Any, list[memoryview]]:
    """A `ModelInferResponse` without its `raw_output_contents`, and these. Raises `ValueError` for other bytes."""
    rest, tensors = [], []
    for tag, field, content in _fields(memoryview(data)):
        if tag == _TENSORS_IN:
            tensors.append(content)
        else:
            rest.append(field)
    return message_of(service_pb2.ModelInferResponse, b"".join(rest)), tensors


def message_of(kind: Any, data: bytes) -> Any:
    """The message of a type that `data` encodes. Raises `ValueError` for other bytes."""
    try:
        return kind.FromString(data)
    except Exception as error:  # protobuf's own, of no common root
        raise ValueError(f"no {kind.DESCRIPTOR.name}") from error


def outputs(message: Any, tensors: Sequence[memoryview]) -> Iterator[tuple[Any, memoryview]]:
    """The outputs that a `ModelInferResponse` describes, each with its tensor; an empty one where none was sent."""
    return zip_longest(message.outputs, tensors[: len(message.outputs)], fillvalue=memoryview(b""))


def dtype_of(datatype: str) -> np.dtype[Any]:
    """NumPy's type for one of Triton's. Raises `ValueError` for one that pixels and numbers do not have."""
    found = triton_to_np_dtype(datatype)
    kind: np.dtype[Any] = np.dtype(found)
    if found is None or kind.hasobject:
        raise ValueError(f"an output of the type {datatype!r}")
    return kind


def array_of(content: memoryview, datatype: str, shape: Sequence[int]) -> npt.NDArray[Any]:
    """A tensor, read-only, in the memory of `content`. Raises `ValueError` for a shape that has another size."""
    kind = dtype_of(datatype)
    if min(shape, default=0) < 0 or prod(shape) * kind.itemsize != len(content):
        raise ValueError(f"{datatype} {list(shape)} in {len(content)} bytes")
    return np.frombuffer(content, kind).reshape(shape)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """The fields of a message: tag, the whole field, and the content of those that have a length."""
    start = 0
    while start < len(data):
        tag, at = _number(data, start)
        if tag & 7 == _BYTES:
            length, at = _number(data, at)
            stop = at + length
        elif tag & 7 == 0:
            _, stop = _number(data, at)
        else:
            stop = at + {1: 8, 5: 4}.get(tag & 7, len(data))
        if stop > len(data):
            raise ValueError(f"a protobuf message ends within its field {tag >> 3}")
        yield tag, data[start:stop], data[at:stop]
        start = stop


def _number(data: memoryview, at: int) -> tuple[int, int]:
    """A varint, and where it ends."""
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a protobuf message ends within a number")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
