"""Stands in for `cuda-bindings` where this folder's parent comes first in the path."""
