"""gRPC messages of an inference, whose tensors are copied once when sent and not at all when received.

Protobuf copies bytes into a message, out of it, and into what is sent. The tensors are separate fields at the end of
a message, so here they are appended to the encoded rest, and cut off before the rest is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import numpy.typing as npt

from nst_client.transports.grpc_library import service_pb2
from nst_client.transports.triton.tensors import bytes_of

_LENGTH_DELIMITED = 2
"""Protobuf's wire type of fields with a length."""


def _tag(message_type: Any, field: str) -> int:
    """Return the tag of a field with a length."""
    number: int = message_type.DESCRIPTOR.fields_by_name[field].number
    return number << 3 | _LENGTH_DELIMITED


_INPUT_TAG = _tag(service_pb2.ModelInferRequest, "raw_input_contents")
_OUTPUT_TAG = _tag(service_pb2.ModelInferResponse, "raw_output_contents")


def encoded(message: Any, tensors: Sequence[npt.NDArray[Any]]) -> bytes:
    """Encode a `ModelInferRequest` with contiguous tensors as its `raw_input_contents`."""
    parts: list[Any] = [message.SerializeToString()]
    for tensor in tensors:
        parts += [bytes([_INPUT_TAG]), _varint(tensor.nbytes), bytes_of(tensor)]
    return b"".join(parts)


def decoded(data: bytes) -> tuple[Any, list[memoryview]]:
    """Decode a `ModelInferResponse`, and return its `raw_output_contents` apart. Raises `ValueError`."""
    rest, tensors = [], []
    for tag, field, content in _fields(memoryview(data)):
        if tag == _OUTPUT_TAG:
            tensors.append(content)
        else:
            rest.append(field)
    return message_of(service_pb2.ModelInferResponse, b"".join(rest)), tensors


def message_of(kind: Any, data: bytes) -> Any:
    """Decode a message of the type `kind`. Raises `ValueError` for anything else."""
    try:
        return kind.FromString(data)
    except Exception as error:  # protobuf's errors have no common root
        raise ValueError(f"not a {kind.DESCRIPTOR.name}") from error


def outputs(message: Any, tensors: Sequence[memoryview]) -> Iterator[tuple[Any, memoryview]]:
    """Pair the outputs of a `ModelInferResponse` with their tensors; an empty tensor if none was sent."""
    return zip_longest(message.outputs, tensors[: len(message.outputs)], fillvalue=memoryview(b""))


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yield the fields of a message: tag, whole field, and content if the field has a length."""
    start = 0
    while start < len(data):
        tag, position = _varint_at(data, start)
        if tag & 7 == _LENGTH_DELIMITED:
            length, position = _varint_at(data, position)
            stop = position + length
        elif tag & 7 == 0:
            _, stop = _varint_at(data, position)
        else:
            stop = position + {1: 8, 5: 4}.get(tag & 7, len(data))
        if stop > len(data):
            raise ValueError(f"a protobuf message ends within its field {tag >> 3}")
        yield tag, data[start:stop], data[position:stop]
        start = stop


def _varint_at(data: memoryview, position: int) -> tuple[int, int]:
    """Decode a varint; returns its value and the position after it."""
    value = shift = 0
    while position < len(data):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise ValueError("a protobuf message ends within a number")


def _varint(value: int) -> bytes:
    encoded_value = bytearray()
    while value > 0x7F:
        encoded_value.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded_value, value])
