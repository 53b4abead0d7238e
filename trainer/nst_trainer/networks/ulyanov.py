"""The texture network of Ulyanov, Lebedev, Vedaldi and Lempitsky 2016 (*Texture Networks*, section 4, figure 2).

It is a pyramid: noise (and for stylization the content image) at several sizes, each with a block of convolutions,
joined from coarse to fine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nst_trainer.networks.styled import ConditionalInstanceNorm, StyledNetwork

Padding = Literal["reflect", "circular"]

NOISE_CHANNELS = 3
"""Channels of noise at every size; as many as the content image has."""


class ConvolutionBlock(nn.Module):
    """3x3, 3x3 and 1x1 convolutions, each with a normalisation and a leaky ReLU (section 4.1).

    Deviation: instance instead of batch normalisation (the same authors' *Instance Normalization*, 2016).
    """

    def __init__(self, channels_in: int, channels: int, styles: int, padding: Padding) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(channels_in, channels, 3, padding=1, padding_mode=padding, bias=False),
                nn.Conv2d(channels, channels, 3, padding=1, padding_mode=padding, bias=False),
                nn.Conv2d(channels, channels, 1, bias=False),
            ]
        )
        self.normalisations = nn.ModuleList([ConditionalInstanceNorm(channels, styles) for _ in self.convolutions])

    def forward(self, x: Tensor, style_weights: Tensor | None) -> Tensor:
        """Map `[N, C, H, W]` to `[N, C', H, W]`."""
        for convolution, norm in zip(self.convolutions, self.normalisations, strict=True):
            x = F.leaky_relu(norm(convolution(x), style_weights), 0.01)
        return x


class Join(nn.Module):
    """Concatenate the upsampled coarse features and the fine features, each normalised (section 4.1)."""

    def __init__(self, coarse: int, fine: int, styles: int) -> None:
        super().__init__()
        self.coarse = ConditionalInstanceNorm(coarse, styles)
        self.fine = ConditionalInstanceNorm(fine, styles)

    def forward(self, coarse: Tensor, fine: Tensor, style_weights: Tensor | None) -> Tensor:
        """Join `[N, C, H/2, W/2]` and `[N, C', H, W]` to `[N, C + C', H, W]`."""
        doubled = F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        return torch.cat([self.coarse(doubled, style_weights), self.fine(fine, style_weights)], dim=1)


class Ulyanov(StyledNetwork):
    """Texture network: makes a texture from noise, or with `texture` False stylizes an image.

    It has five sizes for a texture and six for stylization, with eight more channels at each, as in the paper; `width`
    scales the eight. A texture wraps around (circular convolutions, as in the paper), so it tiles; a content image is
    reflected at its border. A texture's network has 71 thousand parameters. Noise is uniform in [-1/2, 1/2], the
    paper's [0, 1] centred, so that zeros, with which a stylizing network is served, are its mean.
    """

    name = "ulyanov"

    def __init__(self, width: float = 1.0, texture: bool = False, styles: int = 1) -> None:
        super().__init__(width=width, texture=texture, styles=styles)
        self.texture = texture
        scales = 5 if texture else 6
        self.multiple = 2 ** (scales - 1)
        self.min_side = 2 * self.multiple  # two pixels on the coarsest grid: reflection needs them
        channels = max(4, round(8 * width))
        padding: Padding = "circular" if texture else "reflect"
        inputs = NOISE_CHANNELS if texture else NOISE_CHANNELS + 3
        self.first = nn.ModuleList([ConvolutionBlock(inputs, channels, styles, padding) for _ in range(scales)])
        self.joins = nn.ModuleList([Join(channels * step, channels, styles) for step in range(1, scales)])
        self.merged = nn.ModuleList(
            [
                ConvolutionBlock(channels * (step + 1), channels * (step + 1), styles, padding)
                for step in range(1, scales)
            ]
        )
        self.last = nn.Conv2d(channels * scales, 3, 1)

    def forward(self, content: Tensor, style_weights: Tensor | None = None, noise: Sequence[Tensor] = ()) -> Tensor:
        """See `StyledNetwork`; values are in (0, 1). A texture uses only the shape of `content`.

        Deviation: the paper clips to the range of colours; a sigmoid keeps the gradient.
        """
        inputs = self._inputs(content, noise)
        x = self.first[0](inputs[0], style_weights)
        for first, join, merged, fine in zip(self.first[1:], self.joins, self.merged, inputs[1:], strict=True):
            x = merged(join(x, first(fine, style_weights), style_weights), style_weights)
        y: Tensor = self.last(x)
        return torch.sigmoid(y)

    def draw_noise(self, content: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Draw noise `[N, 3, H / 2^k, W / 2^k]` in [-1/2, 1/2], coarse to fine; see `StyledNetwork`."""
        n, _, height, width = content.shape
        sides = [2**halvings for halvings in reversed(range(len(self.first)))]
        return [
            (torch.rand(n, NOISE_CHANNELS, height // side, width // side, generator=generator) - 0.5).to(content)
            for side in sides
        ]

    def _inputs(self, content: Tensor, noise: Sequence[Tensor]) -> list[Tensor]:
        """Return the inputs `[N, 3 or 6, H / 2^k, W / 2^k]` (content image and noise), coarse to fine."""
        if self.texture and noise:
            return list(noise)
        small = [F.avg_pool2d(content, 2**k) if k else content for k in reversed(range(len(self.first)))]
        noise = noise or [torch.zeros_like(image) for image in small]
        if self.texture:
            return list(noise)
        return [torch.cat([2.0 * image - 1.0, grain], dim=1) for image, grain in zip(small, noise, strict=True)]
