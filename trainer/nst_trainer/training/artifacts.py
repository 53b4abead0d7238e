"""Losses against artifacts, which a training adds to the perceptual loss; they are not in the papers."""

from __future__ import annotations

import torch
from torch import Tensor

from nst_trainer.losses import border_loss, checkerboard_loss
from nst_trainer.networks import StyledNetwork
from nst_trainer.training.settings import TrainingSettings

CHECKERBOARD_WEIGHT = 1000.0
"""With this weight a checkerboard of 3.6 of 255, as training without this term gave, adds 0.2 (dev/LOG.md)."""

BORDER_WEIGHT = 30.0
"""With this weight a band of 20 of 255 along a side, as a print with a dark sky gave, adds 0.05 (dev/LOG.md)."""

MAXIMUM_SHIFT_PIXELS = 4
NOISE_DEVIATION = 2.0 / 255.0
"""How the temporal consistency loss perturbs an image, as a hand-held camera does from frame to frame."""


def artifact_losses(
    network: StyledNetwork,
    content: Tensor,
    stylized: Tensor,
    style_weights: Tensor | None,
    settings: TrainingSettings,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return the weighted losses by name, scalars, of `content` and `stylized` `[N, 3, H, W]` in [0, 1]."""
    losses = {"checkerboard": CHECKERBOARD_WEIGHT * checkerboard_loss(stylized)}
    if not settings.texture:  # a texture has no content, and its neighbouring rows differ everywhere
        losses["border"] = BORDER_WEIGHT * border_loss(stylized, content)
    if settings.temporal_weight:
        change = temporal_consistency_loss(network, content, stylized, style_weights, generator)
        losses["temporal"] = settings.temporal_weight * change
    return losses


def temporal_consistency_loss(
    network: StyledNetwork,
    content: Tensor,
    stylized: Tensor,
    style_weights: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """Return how much `stylized` `[N, 3, H, W]` changes when `content` is shifted and gets noise; a scalar.

    It is the mean squared difference of values in [0, 1] after undoing the shift: stability training (Zheng et al.
    2016, equation 3) with the perturbation of a hand-held video (Rainy and de Berker 2018, *Stabilizing Neural
    Style-Transfer for Video*).
    """
    shifts = (-MAXIMUM_SHIFT_PIXELS, MAXIMUM_SHIFT_PIXELS + 1)
    down, right = (int(torch.randint(*shifts, (), generator=generator)) for _ in range(2))
    noise = torch.randn(content.shape, generator=generator).to(content) * NOISE_DEVIATION
    moved = torch.roll(content, (down, right), (2, 3)) + noise
    again = torch.roll(network(moved, style_weights).float(), (-down, -right), (2, 3))
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))  # without pixels that wrapped around the border
    return (again[inside] - stylized[inside]).square().mean()
