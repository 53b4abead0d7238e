"""Rewrites of an exported graph that change its time and not its result.

Each looks for a pattern, replaces every occurrence, and returns how many it replaced. `nst-bench export` measures which
of them pay on each engine (docs/guides/export.md); all pass the same verification.
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
"""What runs an exported model: ONNX Runtime on a CPU, ONNX Runtime CUDA, or TensorRT."""

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
"""By name, in the order in which they run; a later rewrite no longer finds what an earlier one has replaced."""

DEFAULT_REWRITES: dict[Runtime, tuple[str, ...]] = {
    "cpu": ("upsample", "last-convolution", "wrap", "channel-factors"),
    "gpu": ("wrap",),
    "tensorrt": ("upsample-3x3", "doubling", "wrap", "adjacent-pads"),
}
"""What each runtime gets. CPU: measured. GPU: no other was measured to pay. TensorRT: without these it builds nothing
for dynamic sides; `last-convolution`, which costs multiplications, and the other forms of the normalization were not
measured there."""

UNSAFE_REWRITES: dict[Runtime, dict[str, str]] = {"tensorrt": {"upsample": "upsample-3x3 or upsample-windows"}}
"""By runtime: rewrites that it may run wrongly, and what to use in their place."""


def apply_rewrites(proto: ModelProto, names: Sequence[str]) -> dict[str, int]:
    """Apply the rewrites called `names` to `proto` in place; return how many places each changed."""
    return {name: rewrite(proto) for name, rewrite in REWRITES.items() if name in names}
