"""What a training minimises: the perceptual loss, losses against artifacts, and the difference from a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_trainer.losses import PerceptualLoss, border_loss, checkerboard_loss
from nst_trainer.networks import StyledNetwork
from nst_trainer.training.distributed.team import Team
from nst_trainer.training.settings import TrainingSettings
from nst_trainer.training.validation import noise_generator, one_hot

BatchLoss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
"""The interface of `Objective`: from network, content, iteration and `distilled` to a loss and its terms."""

CHECKERBOARD_WEIGHT = 1000.0
"""With this weight a checkerboard of 3.6 of 255, as training without this term gave, adds 0.2 (dev/LOG.md)."""

BORDER_WEIGHT = 30.0
"""With this weight a line of 70 of 255 along a side, as a style image with a pale margin gave, adds 0.14."""

DISTILLATION_WEIGHT = 100.0
"""Weight of the mean squared difference from the teacher's image; about the size of the later losses."""

MAXIMUM_SHIFT_PIXELS = 4
NOISE_DEVIATION = 2.0 / 255.0
"""How the temporal consistency loss perturbs an image, as a hand-held camera does from frame to frame."""


@dataclass(frozen=True)
class Objective:
    """The loss of a batch on this process; `new_styles` are the styles of the network that are trained."""

    perceptual_loss: PerceptualLoss
    settings: TrainingSettings
    new_styles: range
    teacher: StyledNetwork | None
    team: Team
    precision: torch.dtype

    def __call__(
        self, network: StyledNetwork, content: Tensor, iteration: int | Tensor, *, distilled: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of `content` `[N, 3, H, W]` in [0, 1] and its weighted terms by name, style by layer too.

        With `distilled` the difference from the teacher's image is the only term. A scalar tensor as `iteration` keeps
        all of the work on its device, for a CUDA graph; it works if `draws_noise` is False.
        """
        settings, team = self.settings, self.team
        content = content.to(team.device, memory_format=torch.channels_last)
        styles = self._styles_of_batch(iteration)
        style_weights = one_hot(styles + self.new_styles.start, network.styles)
        number = settings.seed * 1_000_003 + iteration * team.size + team.rank
        generator = noise_generator(int(number) if self.draws_noise else 0)
        network.train()
        with torch.autocast(team.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            stylized = network(content, style_weights, network.draw_noise(content, generator)).float()
            if distilled and self.teacher:
                with torch.no_grad():
                    example = self.teacher(content, style_weights).float()
                difference = DISTILLATION_WEIGHT * F.mse_loss(stylized, example)
                return difference, {"distillation": difference}
            target = {} if settings.texture else self.perceptual_loss.content_target(content)
            losses = self.perceptual_loss(stylized, target, styles)
        terms = {"content": losses.content, "style": losses.style, "total_variation": losses.total_variation}
        terms["checkerboard"] = CHECKERBOARD_WEIGHT * checkerboard_loss(stylized)
        if not settings.texture:  # neighbouring rows of a texture differ everywhere, not only at the border
            terms["border"] = BORDER_WEIGHT * border_loss(stylized)
        if settings.temporal_weight:
            change = temporal_consistency_loss(network, content, stylized, style_weights, generator)
            terms["temporal"] = settings.temporal_weight * change
        total = sum(terms.values(), stylized.new_zeros(()))
        return total, terms | {f"style {layer}": value for layer, value in losses.style_by_layer.items()}

    @property
    def draws_noise(self) -> bool:
        """Whether an iteration draws random numbers: noise for the network, or the change of a temporal loss."""
        return self.settings.arch == "ulyanov" or self.settings.temporal_weight != 0.0

    def _styles_of_batch(self, iteration: int | Tensor) -> Tensor:
        """Return the styles `[N]` of this process's images: the new styles in turn, counted from the first."""
        part = self.team.part(self.settings.batch)
        positions = torch.arange(part.start, part.stop, device=self.team.device)
        return (positions + iteration * self.settings.batch) % len(self.new_styles)


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
