"""Lend an array to Triton by DLPack without a copy.

Triton 2.51 renames the capsule that it receives to a name unknown to NumPy. NumPy 1 then hangs in the capsule's
destructor, and NumPy 2 complains at every response. The capsules made here have no destructor: Triton calls the
tensor's `deleter`, as DLPack specifies.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

_CPU = 1
_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}
_NAME = b"dltensor"


class DLTensor(ctypes.Structure):
    """`DLTensor` of DLPack's C header, the first part of a capsule's content."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    """`DLManagedTensor` of DLPack's C header."""

    _fields_ = (("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


_lent: dict[int, tuple[Any, ...]] = {}  # by address: what must live as long as the tensor


def _delete(address: int) -> None:
    _lent.pop(address, None)


_deleter = _Deleter(_delete)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class Lent:
    """A C-contiguous array for `pb_utils.Tensor.from_dlpack`; it lives as long as the tensor."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU, 0

    def __dlpack__(self, **_: Any) -> Any:
        array = self._array
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        kind = (_KINDS[array.dtype.kind], array.dtype.itemsize * 8, 1)
        managed = _Managed(DLTensor(array.ctypes.data, _CPU, 0, array.ndim, *kind, shape, None, 0), None, _deleter)
        address = ctypes.addressof(managed)
        _lent[address] = (managed, shape, array)
        return _new_capsule(address, _NAME, None)
