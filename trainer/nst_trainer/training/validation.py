"""Losses on held-out photographs, the preview image and TensorBoard logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nst_core.errors import ImageError, InputError
from nst_core.images import ImageData, fit, open_image, sample_photographs, save_image, side_by_side
from nst_trainer.images import to_image, to_tensor
from nst_trainer.losses import PerceptualLoss
from nst_trainer.networks import StyledNetwork
from nst_trainer.training.artifacts import artifact_losses
from nst_trainer.training.settings import TrainingSettings

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PREVIEW_MAXIMUM_SIDE_PIXELS = 512
PREVIEW_MAXIMUM_STYLES = 4


class Validation:
    """The loss on the photographs that ship with nst, always at the same size."""

    def __init__(self, loss: PerceptualLoss, styles: range, settings: TrainingSettings, device: torch.device) -> None:
        """`styles` are the network's styles that `loss` has, in its order.

        Each style is validated on at least one photograph of `settings.crop` pixels a side, and each photograph is used
        at least once.
        """
        side = settings.crop
        self.first_style, self.settings = styles.start, settings
        photographs = [to_tensor(fit(open_image(path), side, side)).to(device) for path in sample_photographs()]
        self.loss = loss
        self.checks = [
            (photographs[turn % len(photographs)], styles[turn % len(styles)])
            for turn in range(max(len(photographs), len(styles)))
        ]
        self.targets = [
            loss.content_target(photograph) if loss.weights.content else {} for photograph, _ in self.checks
        ]

    @torch.no_grad()
    def __call__(self, network: StyledNetwork) -> tuple[dict[str, float], Tensor]:
        """Return the mean losses by term, and the stylized photographs `[N, 3, S, S]` in [0, 1].

        `total` is the perceptual loss, as the benchmarks have it, and `objective` what the training minimises: the
        losses against artifacts, too.
        """
        network.eval()
        sums: dict[str, float] = {}
        results = []
        for number, ((photograph, style), target) in enumerate(zip(self.checks, self.targets, strict=True)):
            styles = torch.tensor([style], device=photograph.device)
            style_weights, generator = one_hot(styles, network.styles), noise_generator(number)
            noise = network.draw_noise(photograph, generator)
            stylized = network(photograph, style_weights, noise).clamp(0.0, 1.0)
            losses = self.loss(stylized, target, styles - self.first_style)
            artifacts = artifact_losses(network, photograph, stylized, style_weights, self.settings, generator)
            terms = {"total": losses.total, "objective": sum(artifacts.values(), losses.total)}
            terms |= {"content": losses.content, "style": losses.style, "total_variation": losses.total_variation}
            for term, value in (terms | artifacts).items():
                sums[term] = sums.get(term, 0.0) + value.item() / len(self.checks)
            results.append(stylized)
        return sums, torch.cat(results)


def one_hot(styles: Tensor, count: int) -> Tensor | None:
    """Return style numbers `[N]` as style weights `[N, S]`; None for a network of one style."""
    return None if count == 1 else F.one_hot(styles, count).float()


def noise_generator(number: int) -> torch.Generator:
    """Return a random generator that always gives the same noise for `number`."""
    return torch.Generator().manual_seed(number)


def preview_photograph(candidates: Sequence[Path], multiple: int) -> ImageData:
    """Return the first readable photograph, scaled to at most 512 pixels a side and to multiples of `multiple`."""
    for path in candidates:
        try:
            image = open_image(path, max_side=PREVIEW_MAXIMUM_SIDE_PIXELS)
        except ImageError:
            if path is candidates[-1]:
                raise
            continue
        width, height = (max(2, side // multiple) * multiple for side in (image.width, image.height))
        return fit(image, width, height)
    raise InputError("no photograph for the preview; give one with --preview")


@torch.no_grad()
def write_preview(network: StyledNetwork, styles: range, photograph: ImageData, path: Path) -> None:
    """Write the photograph beside its stylized images, in at most 4 of `styles`."""
    network.eval()
    images = [photograph.pixels]
    content = to_tensor(photograph).to(next(network.parameters()).device)
    for style in styles[:PREVIEW_MAXIMUM_STYLES]:
        style_weights = one_hot(torch.tensor([style], device=content.device), network.styles)
        images.append(to_image(network(content, style_weights)).pixels)
    save_image(ImageData(side_by_side(images)), path)


def write_texture_preview(samples: Tensor, path: Path) -> None:
    """Write samples `[N, 3, S, S]` in [0, 1] of a texture side by side."""
    save_image(ImageData(side_by_side([to_image(sample[None]).pixels for sample in samples])), path)


class Curves:
    """TensorBoard logs: losses by term and by layer, and the stylized held-out photographs."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: SummaryWriter = SummaryWriter(str(folder))

    def scalars(self, group: str, values: Mapping[str, float], iteration: int) -> None:
        """Log `values` at an iteration."""
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, iteration)

    def images(self, stylized: Tensor, iteration: int) -> None:
        """Log images `[N, 3, S, S]` in [0, 1] side by side."""
        row = np.concatenate(list(stylized.cpu().numpy()), axis=2)
        self.writer.add_image("held out", row, iteration)

    def close(self) -> None:
        """Flush and close the files."""
        self.writer.close()
