"""The image transformation network of Johnson, Alahi and Fei-Fei 2016 (supplementary material, table 1).

It has the improvements that are standard today; docstrings name each of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nst_trainer.networks.styled import ConditionalInstanceNorm, StyledNetwork

NET2NET_NOISE = 0.05
"""Noise relative to the weights' standard deviation; without it the copies of a channel would stay equal."""


class ConvNorm(nn.Module):
    """Reflection padding, convolution, instance normalisation; after upsampling by 2 if `upsample`.

    Deviations from Johnson et al.'s table 1: reflection padding in every layer instead of 40 pixels once (fewer border
    artifacts); instance instead of batch normalisation (Ulyanov et al. 2016, *Instance Normalization*, section 2);
    nearest-neighbour upsampling and a convolution instead of a stride of 1/2 (Odena et al. 2016: fewer checkerboard
    artifacts). The convolution has no bias, since the normalisation would remove it.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, styles: int, *, stride: int = 1, upsample: bool = False
    ) -> None:
        super().__init__()
        self.upsample = upsample
        self.convolution = nn.Conv2d(
            channels_in, channels_out, kernel, stride, kernel // 2, padding_mode="reflect", bias=False
        )
        self.norm = ConditionalInstanceNorm(channels_out, styles)

    def forward(self, x: Tensor, style_weights: Tensor | None) -> Tensor:
        """Map `[N, C, H, W]` to `[N, C', H', W']`."""
        if self.upsample:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        y: Tensor = self.norm(self.convolution(x), style_weights)
        return y


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, without a ReLU after the sum (Gross and Wilber, as in Johnson et al.)."""

    def __init__(self, channels: int, styles: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels, 3, styles)
        self.second = ConvNorm(channels, channels, 3, styles)

    def forward(self, x: Tensor, style_weights: Tensor | None) -> Tensor:
        """Map `[N, C, H, W]` to the same shape."""
        y: Tensor = x + self.second(F.relu(self.first(x, style_weights)), style_weights)
        return y


class Johnson(StyledNetwork):
    """Image transformation network: two strided convolutions, residual blocks, two upsamplings.

    `width` scales the paper's 32, 64 and 128 channels; `blocks` residual blocks (paper: 5);
    `ends` is the kernel of the first and last convolution (paper: 9). 1.68 million parameters at
    width 1. `bounded`: the paper's scaled tanh at the end; False leaves values beyond [0, 1].
    """

    name = "johnson"
    multiple = 4  # the grid is halved twice
    min_side = 16  # below it the reflection padding on the coarsest grid fails

    def __init__(
        self, width: float = 1.0, blocks: int = 5, ends: int = 9, styles: int = 1, bounded: bool = True
    ) -> None:
        super().__init__(width=width, blocks=blocks, ends=ends, styles=styles, bounded=bounded)
        fine, middle, coarse = (max(4, round(width * channels)) for channels in (32, 64, 128))
        self.encoder = nn.ModuleList(
            [
                ConvNorm(3, fine, ends, styles),
                ConvNorm(fine, middle, 3, styles, stride=2),
                ConvNorm(middle, coarse, 3, styles, stride=2),
            ]
        )
        self.residual = nn.ModuleList([ResidualBlock(coarse, styles) for _ in range(blocks)])
        self.decoder = nn.ModuleList(
            [ConvNorm(coarse, middle, 3, styles, upsample=True), ConvNorm(middle, fine, 3, styles, upsample=True)]
        )
        self.last = nn.Conv2d(fine, 3, ends, padding=ends // 2, padding_mode="reflect")

    def forward(self, content: Tensor, style_weights: Tensor | None = None, noise: Sequence[Tensor] = ()) -> Tensor:
        """See `StyledNetwork`; values are in (0, 1) if `bounded`. It takes no noise.

        The scaled tanh of the paper's table 1 gives 0-255, here 0-1.
        """
        x = content * 2.0 - 1.0  # centred; the paper subtracts the mean pixel
        for layer in self.encoder:
            x = F.relu(layer(x, style_weights))
        for block in self.residual:
            x = block(x, style_weights)
        for layer in self.decoder:
            x = F.relu(layer(x, style_weights))
        y: Tensor = self.last(x)
        return 0.5 + 0.5 * torch.tanh(y) if self.arguments["bounded"] else y

    def widened(self, width: float, generator: torch.Generator) -> Johnson:
        """Return a wider network that computes nearly the same, to continue training from.

        Net2WiderNet (Chen, Goodfellow and Shlens 2016, section 2.2): channels are copied in turn, and the weights of
        the next layer are divided among the copies. `NET2NET_NOISE` makes the copies differ. Raises `ValueError` for a
        `width` below this network's.
        """
        if width < self.arguments["width"]:
            raise ValueError(f"{width} is narrower than {self.arguments['width']}")
        wide = Johnson(**(self.arguments | {"width": width}))
        state = wide.state_dict()
        for key, values in self.state_dict().items():
            for axis, length in enumerate(state[key].shape):
                copied = torch.arange(length) % values.shape[axis]
                values = values.index_select(axis, copied)
                if axis == 1 and values.ndim == 4:
                    values = values / torch.bincount(copied)[copied].view(1, -1, 1, 1)
            if values.ndim == 4:
                values = values + NET2NET_NOISE * values.std() * torch.randn(values.shape, generator=generator)
            state[key] = values
        wide.load_state_dict(state)
        return wide
