"""Read checkpoints of pytorch/examples' `TransformerNet` (mosaic.pth, candy.pth, ...).

The file is the state dict itself or has it in `state_dict` or `model`, as training loops save it; the names may have
the prefixes of DataParallel, `torch.compile` or an outer module. The network is `Johnson` at width 1 with three
differences, each converted exactly: its pixels are 0-255 and not centred, its convolutions have biases that the
normalisation after them removes, and its last layer is linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nst_trainer.networks import Johnson

RESIDUAL_BLOCKS = 5
OLD_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Entries of files saved before PyTorch 0.4; instance normalisation does not use them."""


FIRST, LAST = "conv1.conv2d.weight", "deconv3.conv2d.bias"
"""Names that every state dict of `TransformerNet` has."""

WRAPPERS = frozenset({"module", "_orig_mod"})
"""Prefixes of DataParallel and `torch.compile` in the name of a layer."""


def transformer_net(document: Any) -> dict[str, Tensor] | None:
    """Find the state dict of a `TransformerNet` in a loaded file; return it under its own names, or None."""
    if not isinstance(document, Mapping):
        return None
    tensors = {
        ".".join(part for part in key.split(".") if part not in WRAPPERS): value.detach()
        for key, value in document.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    prefixes = [key.removesuffix(FIRST) for key in tensors if key == FIRST or key.endswith(f".{FIRST}")]
    for prefix in prefixes:
        if prefix + LAST in tensors:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    inner = (transformer_net(value) for value in document.values() if isinstance(value, Mapping))
    return next((found for found in inner if found is not None), None)


def from_transformer_net(document: Mapping[str, Tensor]) -> Johnson:
    """Convert a `TransformerNet` state dict under its own names, with or without its old statistics.

    Its layers are conv1-conv3 with in1-in3, res1-res5 and deconv1-deconv3 with in4 and in5. Raises `KeyError` for a
    missing layer and `RuntimeError` for one that does not fit.
    """
    theirs = {key: value.float() for key, value in document.items() if not key.endswith(OLD_STATISTICS)}
    ours: dict[str, Tensor] = {}

    def take(convolution: str, norm: str, target: str) -> None:
        ours[f"{target}.convolution.weight"] = theirs.pop(f"{convolution}.conv2d.weight")
        theirs.pop(f"{convolution}.conv2d.bias")  # a constant per channel, which the normalisation removes
        for name in ("weight", "bias"):
            ours[f"{target}.norm.{name}"] = theirs.pop(f"{norm}.{name}")[None]

    for number in range(3):
        take(f"conv{number + 1}", f"in{number + 1}", f"encoder.{number}")
    for number in range(RESIDUAL_BLOCKS):
        for part, name in ((1, "first"), (2, "second")):
            take(f"res{number + 1}.conv{part}", f"res{number + 1}.in{part}", f"residual.{number}.{name}")
    for number in range(2):
        take(f"deconv{number + 1}", f"in{number + 4}", f"decoder.{number}")
    # Pixels of 0-255 are 127.5 (x + 1) for our centred x; the 1 is again a constant per channel.
    ours["encoder.0.convolution.weight"] *= 127.5
    ours["last.weight"] = theirs.pop("deconv3.conv2d.weight") / 255.0
    ours["last.bias"] = theirs.pop("deconv3.conv2d.bias") / 255.0
    if theirs:
        raise KeyError(f"unknown layers {', '.join(sorted(theirs)[:3])}")
    network = Johnson(width=len(ours["encoder.0.convolution.weight"]) / 32, bounded=False)
    network.load_state_dict(ours)
    return network
