"""gRPC messages of an inference whose tensors are copied once on their way out and not at all on their way in.

Protobuf copies bytes into a message, out of it, and into what is sent. Tensors are fields of their own at the end of
a message, so here they are joined to the encoded rest, and cut off before the rest is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

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
        parts += [bytes([_TENSORS_OUT]), _varint(tensor.nbytes), tensor.reshape(-1).view(np.uint8).data]
    return b"".join(parts)


def decoded(data: bytes) -> tuple[Any, list[memoryview]]:
    """A `ModelInferResponse` without its `raw_output_contents`, and these. Raises `ValueError` for other bytes."""
    rest, tensors = [], []
    for tag, field, content in _fields(memoryview(data)):
        if tag == _TENSORS_IN:
            tensors.append(content)
        else:
            rest.append(field)
    try:
        return service_pb2.ModelInferResponse.FromString(b"".join(rest)), tensors
    except Exception as error:  # protobuf's own, of no common root
        raise ValueError(f"no ModelInferResponse: {error}") from error


def tensor_of(message: Any, tensors: Sequence[memoryview], name: str) -> npt.NDArray[Any] | None:
    """The tensor of an answer, read-only; None if it has none of this name. Raises `ValueError` for a wrong length."""
    for output, content in zip(message.outputs, tensors, strict=False):
        if output.name == name:
            return np.frombuffer(content, triton_to_np_dtype(output.datatype)).reshape(list(output.shape))
    return None


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
