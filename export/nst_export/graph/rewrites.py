"""Rewrites of an exported graph that change its speed, not its result.

Each finds a pattern, replaces every occurrence, and returns how many it replaced. `nst bench export` measures which of
them pay on each engine; all are verified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from onnx import ModelProto

from nst_export.graph.convolutions import channel_factors, last_convolution
from nst_export.graph.normalization import decomposed_norm, group_norm
from nst_export.graph.padding import adjacent_pads, wrap
from nst_export.graph.upsampling import doubling, upsample, upsample_3x3, upsample_windows

Runtime = Literal["cpu", "gpu", "tensorrt"]
"""The runtime of an exported model: ONNX Runtime on a CPU, ONNX Runtime CUDA, or TensorRT."""

REWRITES: dict[str, Callable[[ModelProto], int]] = {
    "upsample": upsample,
    "upsample-windows": upsample_windows,
    "upsample-3x3": upsample_3x3,
    "last-convolution": last_convolution,
    "doubling": doubling,
    "wrap": wrap,
    "adjacent-pads": adjacent_pads,
    "channel-factors": channel_factors,
    "group-norm": group_norm,
    "decomposed-norm": decomposed_norm,
}
"""Rewrites by name, in their order; a later rewrite does not find what an earlier one replaced."""

DEFAULT_REWRITES: dict[Runtime, tuple[str, ...]] = {
    "cpu": ("upsample", "last-convolution", "wrap", "channel-factors"),
    "gpu": ("wrap",),
    "tensorrt": ("upsample-3x3", "doubling", "wrap", "adjacent-pads"),
}
"""Default rewrites by runtime. CPU: as measured. GPU: no other was measured to pay. TensorRT: without these it cannot
build for dynamic sides; `last-convolution`, which costs multiplications, and the other forms of the normalization were
not measured there."""

UNSAFE_REWRITES: dict[Runtime, dict[str, str]] = {"tensorrt": {"upsample": "upsample-3x3 or upsample-windows"}}
"""Rewrites that a runtime may execute wrongly, with their replacements."""


def apply_rewrites(proto: ModelProto, names: Sequence[str]) -> dict[str, int]:
    """Apply the rewrites called `names` to `proto` in place; return how many places each changed."""
    return {name: rewrite(proto) for name, rewrite in REWRITES.items() if name in names}
