"""What a training minimises: the perceptual loss, losses against artifacts, and the difference from a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nst_trainer.losses import PerceptualLoss
from nst_trainer.networks import StyledNetwork
from nst_trainer.training.artifacts import artifact_losses
from nst_trainer.training.distributed.team import Team
from nst_trainer.training.settings import TrainingSettings
from nst_trainer.training.validation import noise_generator, one_hot

BatchLoss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
"""The interface of `Objective`: from network, content, iteration and `distilled` to a loss and its terms."""

DISTILLATION_WEIGHT = 100.0
"""Weight of the mean squared difference from the teacher's image; about the size of the later losses."""


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
        terms |= artifact_losses(network, content, stylized, style_weights, settings, generator)
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
