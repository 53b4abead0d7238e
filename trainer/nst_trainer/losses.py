"""The perceptual losses: content, style and total variation.

Johnson, Alahi and Fei-Fei 2016, section 3.2; Gatys, Ecker and Bethge 2016, section 2; the guided
Gram matrices of Gatys et al. 2017 (*Controlling Perceptual Factors*), section 4.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_core.errors import InputError
from nst_trainer.loss_settings import LossWeights
from nst_trainer.vgg import Vgg16

CONTENT_LAYERS: Mapping[str, float] = {"relu3_3": 1.0}
STYLE_LAYERS: Mapping[str, float] = {"relu1_2": 1.0, "relu2_2": 1.0, "relu3_3": 1.0, "relu4_3": 1.0}
"""Layers of the feed-forward networks' training, with equal weights (Johnson et al., section 3.2)."""


def gram_matrix(features: Tensor, guide: Tensor | None = None) -> Tensor:
    """Return the Gram matrices `[N, C, C]` of features `[N, C, H, W]`, divided by C*H*W (Johnson, equation 3).

    A non-negative `guide` `[K, 1, H, W]` weights the positions (Gatys et al. 2017): the features of one image then give
    `[K, C, C]`, a matrix for each region, as if the image had only that region. A guide of ones changes nothing.
    """
    n, c, h, w = features.shape
    if guide is not None:
        features = features * guide * (h * w / guide.square().sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)).sqrt()
        n = len(features)
    flat = features.permute(0, 2, 3, 1).reshape(n, h * w, c)  # a view for channels-last features
    with torch.autocast(features.device.type, enabled=False):  # sums over all positions need FP32
        product: Tensor = _Squared.apply(flat)  # type: ignore[no-untyped-call]
    return product / (c * h * w)


class _Squared(torch.autograd.Function):
    """Multiply the transpose of `[N, P, C]` by itself, to `[N, C, C]`, at least in FP32.

    Autograd would multiply twice in the backward pass, once per factor; since both are equal, one product suffices. The
    gradient has the precision of the features, as every gradient of theirs.
    """

    @staticmethod
    def forward(context: Any, flat: Tensor) -> Tensor:
        context.save_for_backward(flat)
        wide = flat.to(torch.promote_types(flat.dtype, torch.float32))
        with _products_of(flat):
            return wide.transpose(1, 2) @ wide

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (flat,) = context.saved_tensors
        product: Tensor = flat @ (gradient + gradient.transpose(1, 2)).to(flat.dtype)
        return product


@contextmanager
def _products_of(features: Tensor) -> Iterator[None]:
    """Let a CPU multiply FP32 values that come from bfloat16 as bfloat16, in half the time; sums stay FP32."""
    if features.dtype != torch.bfloat16 or features.device.type != "cpu":
        yield
        return
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def content_loss(features: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance of features over C*H*W (Johnson, equation 2), the mean over the batch; a scalar."""
    return F.mse_loss(features, target)


def style_loss(gram: Tensor, target: Tensor) -> Tensor:
    """Return the squared Frobenius distances `[N]` of Gram matrices `[N, C, C]` (Johnson, equation 4)."""
    distances: Tensor = (gram - target).square().sum(dim=(1, 2))
    return distances


def total_variation(images: Tensor) -> Tensor:
    """Return the mean squared difference of neighbouring pixels of `[N, 3, H, W]` in [0, 1]; a scalar.

    Johnson et al., section 3.2. It is a mean instead of their sum, so that a weight means the same at every size.
    """
    down = images[:, :, 1:, :] - images[:, :, :-1, :]
    across = images[:, :, :, 1:] - images[:, :, :, :-1]
    variation: Tensor = down.square().mean() + across.square().mean()
    return variation


def checkerboard_loss(images: Tensor, period: int = 4) -> Tensor:
    """Return how strongly `[N, 3, H, W]` in [0, 1] repeats on a grid of `period` pixels; a scalar, 0 for none.

    It is the variance of the means of the period^2 phases, for each image and channel. H and W are multiples of the
    period. It is not in the papers: a network that upsamples twice can make every fourth pixel alike, which Gram
    matrices do not detect.
    """
    n, channels, _, _ = images.shape
    means = F.pixel_unshuffle(images, period).mean(dim=(2, 3)).view(n, channels, period * period)
    variance: Tensor = means.var(dim=2, correction=0).mean()
    return variance


def border_loss(images: Tensor, content: Tensor) -> Tensor:
    """Return how much a style adds lines and bands along the sides of `content` `[N, 3, H, W]`; a scalar, 0 for none.

    `images` `[N, 3, H, W]` are the stylized images; both have values in [0, 1], and H and W are at least 32. It is the
    mean squared difference of the two in how much the rows within 4, and within 16, pixels of a side differ from as
    many further in; the mean over the four sides, the sum over the two widths.

    It is not in the papers: the loss network pads with zeros, and so its features tell where an image ends. A network
    learns the margin, the frame or the dark edge of a style image as a band around every image, which its style loss
    rewards.
    """
    widths = torch.stack([_steps(images, width).sub(_steps(content, width)).square().mean() for width in (4, 16)])
    return widths.sum()


def _steps(images: Tensor, width: int) -> Tensor:
    """Return the means of the outer `width` rows minus that of the `width` rows further in, for all four sides."""
    transposed = images.transpose(2, 3)
    sides = [side.mean(dim=3) for side in (images, images.flip(2), transposed, transposed.flip(2))]
    return torch.stack([rows[:, :, :width] - rows[:, :, width : 2 * width].mean(dim=2, keepdim=True) for rows in sides])


@dataclass(frozen=True)
class Losses:
    """The weighted terms of a loss, scalars; `total` is minimised."""

    content: Tensor
    style: Tensor
    total_variation: Tensor
    style_by_layer: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The sum of the weighted terms."""
        return self.content + self.style + self.total_variation


class PerceptualLoss:
    """Content, style and total variation losses against style images.

    Training, optimisation and the benchmarks use this class, so their losses are comparable.
    """

    def __init__(
        self,
        vgg: Vgg16,
        styles: Tensor | Sequence[Tensor],
        weights: LossWeights,
        *,
        style_weights: Sequence[float] | None = None,
        content_layers: Mapping[str, float] = CONTENT_LAYERS,
        style_layers: Mapping[str, float] = STYLE_LAYERS,
        relative: bool = True,
        guides: tuple[Tensor, Sequence[Tensor]] | None = None,
        apart: bool = False,
    ) -> None:
        """`styles` are images `[1, 3, H, W]` in [0, 1]; their sizes determine the size of the strokes.

        The layers have weights. Several styles are interpolated: the target is the mean of their Gram matrices,
        weighted by `style_weights`; with `apart` each is a target of its own. With `relative` a layer's (and region's)
        style loss is divided by its target's squared norm, so that 1 is the loss of a black image. This deviates from
        equation 4, whose plain sum nearly ignores relu4_3 (the layers' squared norms differ by four orders of
        magnitude) and weights style images differently (by up to 16 times, over ten of them). `guides` are masks
        `[K, 1, h, w]` of K regions, of the content and of each style; a region takes the style of the same region.

        Raises `InputError` for unusable `style_weights`.
        """
        images = [styles] if isinstance(styles, Tensor) else list(styles)
        parts = list(style_weights) if style_weights is not None else [1.0] * len(images)
        if not images or len(parts) != len(images) or min(parts) < 0 or sum(parts) <= 0:
            raise InputError(
                f"{len(images)} style images with the weights {parts}; give one weight per style, from 0 up, not all 0"
            )
        self.vgg = vgg
        self.weights = weights
        self.content_layers = dict(content_layers)
        self.style_layers = dict(style_layers)
        self.guide = guides[0] if guides else None
        if apart:
            by_style = [self._targets([image], [1.0], [None]) for image in images]
            self.style_targets = {name: torch.cat([each[name] for each in by_style]) for name in self.style_layers}
        else:
            self.style_targets = self._targets(images, parts, guides[1] if guides else [None] * len(images))
        self.factors = {
            name: weights.style
            * self.style_layers[name]
            / (target.square().sum(dim=(1, 2)) if relative else target.new_ones(1))
            for name, target in self.style_targets.items()
        }

    def with_rounded_network(self, precision: torch.dtype) -> PerceptualLoss:
        """Return the same loss with the loss network's weights in `precision`.

        Under autocast it computes the same, and saves converting seven million weights in each pass.
        """
        if precision == torch.float32:
            return self
        other = copy.copy(self)
        other.vgg = copy.deepcopy(self.vgg)
        other.vgg.convolutions.to(precision)
        return other

    @torch.no_grad()
    def _targets(
        self, images: Sequence[Tensor], parts: Sequence[float], guides: Sequence[Tensor | None]
    ) -> dict[str, Tensor]:
        targets = dict.fromkeys(self.style_layers, torch.zeros((), device=images[0].device))
        for image, part, guide in zip(images, parts, guides, strict=True):
            features = self.vgg(image, self.style_layers)
            for name in self.style_layers:
                targets[name] = targets[name] + part / sum(parts) * gram_matrix(
                    features[name], _at(guide, features[name])
                )
        return targets

    @torch.no_grad()
    def content_target(self, images: Tensor) -> dict[str, Tensor]:
        """Return the content layers' features of `[N, 3, H, W]` in [0, 1]; deeper layers are not computed."""
        targets: dict[str, Tensor] = self.vgg(images, self.content_layers) if self.content_layers else {}
        return targets

    def __call__(self, images: Tensor, content_target: Mapping[str, Tensor], style: Tensor | None = None) -> Losses:
        """Return the losses of `[N, 3, H, W]` in [0, 1] against the `content_target` of their content images.

        `style` `[N]` has the number of each image's style, if the styles are targets `apart`.
        """
        features = self.vgg(images, [*self.content_layers, *self.style_layers])
        none = images.new_zeros(())
        by_layer = {}
        for name, factor in self.factors.items():
            gram = gram_matrix(features[name], _at(self.guide, features[name]))
            target = self.style_targets[name]
            if style is not None:
                factor, target = factor[style], target[style]
            by_layer[name] = (factor * style_loss(gram, target)).mean()
        content = sum(
            (
                self.content_layers[name] * content_loss(features[name], target)
                for name, target in content_target.items()
            ),
            none,
        )
        return Losses(
            content=self.weights.content * content,
            style=sum(by_layer.values(), none),
            total_variation=self.weights.total_variation * total_variation(images),
            style_by_layer=by_layer,
        )


def _at(guide: Tensor | None, features: Tensor) -> Tensor | None:
    """Resize a guide to the features of a layer."""
    return None if guide is None else F.interpolate(guide, features.shape[2:], mode="area")
