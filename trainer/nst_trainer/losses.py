"""The perceptual losses: content, style and total variation.

Johnson, Alahi and Fei-Fei 2016, section 3.2; the style loss is that of Gatys et al. 2016 with
the Gram matrices' normalisation of Johnson's equation 3. All are means or sums over a batch's
pictures as said, so a batch's loss is the mean of its pictures' losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_trainer.settings import LossWeights
from nst_trainer.vgg import Vgg16

CONTENT_LAYER = "relu3_3"
STYLE_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")


def gram_matrix(features: Tensor) -> Tensor:
    """Correlations of channels, `[N, C, H, W]` to `[N, C, C]`, divided by C*H*W (equation 3)."""
    n, c, h, w = features.shape
    flat = features.permute(0, 2, 3, 1).reshape(n, h * w, c)  # a view for channels-last features
    return flat.transpose(1, 2) @ flat / (c * h * w)


def content_loss(features: Tensor, target: Tensor) -> Tensor:
    """Squared distance of features over C*H*W (equation 2), the mean over the batch; a scalar."""
    return F.mse_loss(features, target)


def style_loss(features: Tensor, target: Tensor) -> Tensor:
    """Squared Frobenius distance of Gram matrices over the target's own squared norm; a scalar.

    `features` are `[N, C, H, W]`, `target` is the style's Gram matrix `[C, C]`; the mean over the
    batch. Deviation from equation 4, which has no divisor: the layers' Gram matrices differ by
    four orders of magnitude and paintings' by one, so the bare sum hardly sees relu4_3 and needs
    other weights for every painting. Relative, 1 is the loss of a black picture in every layer.
    """
    distance: Tensor = (gram_matrix(features) - target).square().sum(dim=(1, 2)).mean()
    return distance / target.square().sum()


def total_variation(pictures: Tensor) -> Tensor:
    """Squared differences of neighbouring pixels, over all values, `[N, 3, H, W]` to a scalar.

    Johnson et al., section 3.2. In pixels of [0, 1]; a mean, not their sum, so that a weight
    means the same at every size.
    """
    down = pictures[:, :, 1:, :] - pictures[:, :, :-1, :]
    across = pictures[:, :, :, 1:] - pictures[:, :, :, :-1]
    variation: Tensor = down.square().mean() + across.square().mean()
    return variation


@dataclass(frozen=True)
class Losses:
    """The terms of one loss, weighted; scalars. `total` is what is minimised."""

    content: Tensor
    style: Tensor
    total_variation: Tensor
    style_by_layer: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The weighted sum."""
        return self.content + self.style + self.total_variation


class PerceptualLoss:
    """Content, style and total variation against one style picture, by one loss network.

    The same object serves the feed-forward trainer, the optimisation and the benchmarks, so
    their losses are comparable by construction.
    """

    def __init__(
        self,
        vgg: Vgg16,
        style: Tensor,
        weights: LossWeights,
        content_layer: str = CONTENT_LAYER,
        style_layers: tuple[str, ...] = STYLE_LAYERS,
    ) -> None:
        """`style` is a picture `[1, 3, H, W]` in [0, 1] at the size whose strokes are wanted."""
        self.vgg = vgg
        self.weights = weights
        self.content_layer = content_layer
        self.style_layers = style_layers
        with torch.no_grad():
            features = vgg(style, style_layers)
            self.style_targets = {name: gram_matrix(features[name])[0] for name in style_layers}

    @torch.no_grad()
    def content_target(self, pictures: Tensor) -> Tensor:
        """The content layer's features of `[N, 3, H, W]`, computed no deeper than that layer."""
        features: dict[str, Tensor] = self.vgg(pictures, [self.content_layer])
        return features[self.content_layer]

    def __call__(self, pictures: Tensor, content_target: Tensor) -> Losses:
        """The losses of `[N, 3, H, W]` in [0, 1] against a `content_target` of the same pictures."""
        features = self.vgg(pictures, [self.content_layer, *self.style_layers])
        by_layer = {
            name: self.weights.style * style_loss(features[name], self.style_targets[name])
            for name in self.style_layers
        }
        return Losses(
            content=self.weights.content * content_loss(features[self.content_layer], content_target),
            style=torch.stack(list(by_layer.values())).sum(),
            total_variation=self.weights.total_variation * total_variation(pictures),
            style_by_layer=by_layer,
        )
