"""Contract 1: raw pixels in, raw pixels out, as one module; a client needs no preprocessing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT = "image"
OUTPUT = "stylized"
MIN_SIDE = 16
"""Smallest height and width, pixels: below it the reflection padding on the coarsest grid fails."""

MULTIPLE = 4
"""The networks halve the grid twice."""


class ServedModel(nn.Module):
    """A network with the picture's arithmetic around it: /255, padding, cropping, clamp, rounding."""

    def __init__(self, network: nn.Module) -> None:
        """`network` maps `[N, 3, H, W]` in [0, 1] to the same, for multiples of 4."""
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """SRGB `uint8 [N, H, W, 3]` to stylised `uint8 [N, H, W, 3]`, any H and W from 16 up."""
        height, width = image.shape[1], image.shape[2]
        # TensorRT transposes no UINT8: cast first, transpose after, the other way round at the end.
        x = image.float().permute(0, 3, 1, 2) / 255.0
        x = F.pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="reflect")
        y: Tensor = self.network(x)[:, :, :height, :width]
        levels = (y * 255.0).clamp(0.0, 255.0).round()
        return levels.permute(0, 2, 3, 1).to(torch.uint8)
