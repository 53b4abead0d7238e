"""Convert tensors to the bytes that both protocols send, and back."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from tritonclient.utils import triton_to_np_dtype


def bytes_of(tensor: npt.NDArray[Any]) -> memoryview:
    """Return the bytes of a contiguous tensor without copying them."""
    content: Any = tensor.reshape(-1).view(np.uint8).data
    return cast(memoryview, content)


def dtype_of(datatype: str) -> np.dtype[Any]:
    """Return NumPy's type for Triton's. Raises `ValueError` for a type that is not numeric."""
    found = triton_to_np_dtype(datatype)
    kind: np.dtype[Any] = np.dtype(found)
    if found is None or kind.hasobject:
        raise ValueError(f"unknown type {datatype!r} of an output")
    return kind


def array_of(content: memoryview, datatype: str, shape: Sequence[int]) -> npt.NDArray[Any]:
    """Return a read-only tensor in the memory of `content`. Raises `ValueError` for a shape of another size."""
    kind = dtype_of(datatype)
    if min(shape, default=0) < 0 or prod(shape) * kind.itemsize != len(content):
        raise ValueError(f"{datatype} {list(shape)} in {len(content)} bytes")
    return np.frombuffer(content, kind).reshape(shape)
