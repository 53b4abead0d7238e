"""A network for CPUs: Johnson's, with less arithmetic and memory traffic at full resolution.

It is not from a paper; dev/LOG.md lists what was tried. At width 0.5 and below, Johnson et al.'s network spends most
of its time at full resolution, where few channels leave vector registers partly empty and every normalisation reads
and writes the whole image. Here only the input and the output have full resolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nst_trainer.networks.johnson import ConvNorm, ResidualBlock
from nst_trainer.networks.styled import StyledNetwork

ENDS = 5
"""Kernel of the first and last convolution; at half resolution it covers as much as Johnson's 9."""


class Fast(StyledNetwork):
    """Two strided convolutions, residual blocks at quarter resolution, one upsampling, a pixel shuffle.

    `width` scales 32 channels at half resolution and 48 at a quarter; `blocks` is the number of residual blocks.
    The last convolution computes 2x2 pixels at once (Shi et al. 2016, *Real-Time Single Image and Video
    Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network*, section 3.2). Its four kernels
    are initialised equal, so that training starts without checkerboard artifacts (Aitken et al. 2017, *Checkerboard
    artifact free sub-pixel convolution*, section 3.1).
    """

    name = "fast"
    multiple = 4  # the grid is halved twice
    min_side = 16  # below it the reflection padding on the coarsest grid fails

    def __init__(self, width: float = 1.0, blocks: int = 4, styles: int = 1) -> None:
        super().__init__(width=width, blocks=blocks, styles=styles)
        half, quarter = (max(4, round(width * channels)) for channels in (32, 48))
        self.encoder = nn.ModuleList(
            [ConvNorm(3, half, ENDS, styles, stride=2), ConvNorm(half, quarter, 3, styles, stride=2)]
        )
        self.residual = nn.ModuleList([ResidualBlock(quarter, styles) for _ in range(blocks)])
        self.decoder = ConvNorm(quarter, half, 3, styles, upsample=True)
        self.last = nn.Conv2d(half, 3 * 4, ENDS, padding=ENDS // 2, padding_mode="reflect")
        with torch.no_grad():
            for values in self.last.parameters():
                values.copy_(values[::4].repeat_interleave(4, dim=0))

    def forward(self, content: Tensor, style_weights: Tensor | None = None, noise: Sequence[Tensor] = ()) -> Tensor:
        """See `StyledNetwork`; values are in (0, 1). It takes no noise."""
        x = content * 2.0 - 1.0
        for layer in self.encoder:
            x = F.relu(layer(x, style_weights))
        for block in self.residual:
            x = block(x, style_weights)
        x = F.relu(self.decoder(x, style_weights))
        y = F.pixel_shuffle(self.last(x), 2)
        return 0.5 + 0.5 * torch.tanh(y)
