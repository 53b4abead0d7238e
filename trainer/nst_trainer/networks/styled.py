"""Base of every network: shared convolutions, and a normalisation for each style.

Dumoulin, Shlens and Kudlur 2017, *A Learned Representation for Artistic Style*, section 2.2: a style needs only its
own scales and shifts after the normalisations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-5
"""Added to a variance; the default of PyTorch's normalisations."""


class ConditionalInstanceNorm(nn.Module):
    """Instance normalisation (Ulyanov et al. 2016) with a scale and a shift for each style (equation 5).

    `weight` and `bias` are `[S, C]` for S styles and C channels.
    """

    def __init__(self, channels: int, styles: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(styles, channels))
        self.bias = nn.Parameter(torch.zeros(styles, channels))

    def forward(self, x: Tensor, style_weights: Tensor | None) -> Tensor:
        """Normalize `[N, C, H, W]`; `style_weights` `[N, S]` interpolates the styles, None selects the only style.

        It interpolates scales and shifts, not images (section 3.3).
        """
        # Groups of one channel are instances. In training this kernel avoids the copies of instance_norm, which leaves
        # channels-last; the exporter needs instance_norm. Its backward pass is slow in bfloat16, and the statistics
        # need FP32.
        if style_weights is None:
            weight, bias = self.weight[0], self.bias[0]
            if self.training:
                return F.group_norm(x.float(), x.shape[1], weight, bias).to(x.dtype)
            return F.instance_norm(x, None, None, weight, bias)
        normal = F.group_norm(x.float(), x.shape[1]).to(x.dtype) if self.training else F.instance_norm(x)
        scale, shift = style_weights @ self.weight, style_weights @ self.bias
        return normal * scale[:, :, None, None] + shift[:, :, None, None]

    def with_statistics(self, x: Tensor, mean: Tensor, variance: Tensor, style_weights: Tensor | None) -> Tensor:
        """Normalize as `forward` does, with a given mean and variance `[N, C]` instead of those of `x`."""
        scale, shift = (
            (self.weight, self.bias)
            if style_weights is None
            else (style_weights @ self.weight, style_weights @ self.bias)
        )
        scale = scale / torch.sqrt(variance + EPSILON)
        return x * scale[:, :, None, None] + (shift - mean * scale)[:, :, None, None]


class StyledNetwork(nn.Module):
    """A network for S styles, S >= 1; its constructor takes `styles`, and `arguments` has all that it was given.

    H and W of its images are multiples of `multiple`, at least `min_side` (pixels).
    """

    name: ClassVar[str]
    multiple: int
    min_side: int

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments

    @property
    def styles(self) -> int:
        """The number of styles."""
        count: int = self.arguments["styles"]
        return count

    def forward(self, content: Tensor, style_weights: Tensor | None = None, noise: Sequence[Tensor] = ()) -> Tensor:
        """Stylize RGB images `[N, 3, H, W]` in [0, 1]; the result has the same shape.

        `style_weights` `[N, S]`, whose rows sum to 1, may be omitted for a single style; `noise` is a result of
        `draw_noise`, or empty.
        """
        raise NotImplementedError

    def draw_noise(self, content: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Draw noise for `content` `[N, 3, H, W]`; empty if the network takes none."""
        return []

    def norms(self) -> list[ConditionalInstanceNorm]:
        """Return the layers with the parameters of each style."""
        return [module for module in self.modules() if isinstance(module, ConditionalInstanceNorm)]

    def with_styles(self, more: int) -> Self:
        """Return a copy with `more` additional styles, each initialised as the mean of the present ones."""
        grown = type(self)(**(self.arguments | {"styles": self.styles + more}))
        state = self.state_dict()
        own = {id(values) for norm in self.norms() for values in (norm.weight, norm.bias)}
        for key, values in self.named_parameters():
            if id(values) in own:
                mean = values.detach().mean(dim=0, keepdim=True)
                state[key] = torch.cat([values.detach(), mean.expand(more, -1)])
        grown.load_state_dict(state)
        return grown
