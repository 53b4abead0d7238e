"""Contract 1: raw pixels in, raw pixels out, as one module; a client needs no preprocessing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nst_trainer.networks import StyledNetwork

INPUT = "image"
STYLE_WEIGHTS = "style_weights"
OUTPUT = "stylized"


class ServedModel(nn.Module):
    """A network with the picture's arithmetic around it: /255, padding, cropping, clamp, rounding."""

    def __init__(self, network: StyledNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, style_weights: Tensor | None = None) -> Tensor:
        """SRGB `uint8 [N, H, W, 3]` to stylised `uint8 [N, H, W, 3]`, any H and W from the network's `min_side` up.

        `style_weights` `[N, S]` are shares of the styles, for a network of several; they are cut at 0 and
        normalised here.
        """
        height, width = image.shape[1], image.shape[2]
        # TensorRT transposes no UINT8: cast first, transpose after, the other way round at the end.
        x = image.float().permute(0, 3, 1, 2) / 255.0
        multiple = self.network.multiple
        x = F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="reflect")
        y = self.network(x, None if style_weights is None else _shares(style_weights))[:, :, :height, :width]
        levels: Tensor = (y * 255.0).clamp(0.0, 255.0).round()
        return levels.permute(0, 2, 3, 1).to(torch.uint8)


def _shares(weights: Tensor) -> Tensor:
    """Not negative, and rows that sum to 1."""
    weights = weights.clamp(min=0.0)
    shares: Tensor = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
    return shares
