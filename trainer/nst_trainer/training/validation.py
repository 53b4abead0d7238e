"""How good a network is on photographs that it does not learn from, and what a person watches while it learns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nst_core.images import fit, open_image, sample_photographs
from nst_trainer.images import to_tensor
from nst_trainer.losses import PerceptualLoss
from nst_trainer.networks import StyledNetwork

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Validation:
    """The loss on the photographs that ship with nst, each at the same size in every check."""

    def __init__(self, loss: PerceptualLoss, styles: range, side: int, device: torch.device) -> None:
        """The network's `styles` are those of `loss`, in its order.

        Each is checked on at least one photograph of `side`^2 pixels, and each photograph at least once.
        """
        self.first = styles.start
        photographs = [to_tensor(fit(open_image(path), side, side)).to(device) for path in sample_photographs()]
        self.loss = loss
        self.checks = [
            (photographs[turn % len(photographs)], styles[turn % len(styles)])
            for turn in range(max(len(photographs), len(styles)))
        ]
        self.targets = [loss.content_target(one) if loss.weights.content else {} for one, _ in self.checks]

    @torch.no_grad()
    def __call__(self, network: StyledNetwork) -> tuple[dict[str, float], Tensor]:
        """The mean losses by term, `total` among them, and the painted photographs `[N, 3, S, S]`."""
        network.eval()
        sums: dict[str, float] = dict.fromkeys(("total", "content", "style", "total_variation"), 0.0)
        painted = []
        for number, ((photograph, style), target) in enumerate(zip(self.checks, self.targets, strict=True)):
            numbers = torch.tensor([style], device=photograph.device)
            grain = network.draw_noise(photograph, noise(number))
            picture = network(photograph, one_hot(numbers, network.styles), grain).clamp(0.0, 1.0)
            losses = self.loss(picture, target, numbers - self.first)
            for term in sums:
                sums[term] += getattr(losses, term).item() / len(self.checks)
            painted.append(picture)
        return sums, torch.cat(painted)


def one_hot(styles: Tensor, count: int) -> Tensor | None:
    """Numbers of styles `[N]` as shares `[N, S]`; None where there is one style."""
    return None if count == 1 else F.one_hot(styles, count).float()


def noise(number: int) -> torch.Generator:
    """The noise of number `number`: the same whenever it is asked for."""
    return torch.Generator().manual_seed(number)


class Curves:
    """TensorBoard's files: scalars by term and by layer, and a grid of held-out photographs, painted."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: SummaryWriter = SummaryWriter(str(folder))

    def scalars(self, group: str, values: Mapping[str, float], iteration: int) -> None:
        """One point of each of `values`."""
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, iteration)

    def pictures(self, painted: Tensor, iteration: int) -> None:
        """`[N, 3, S, S]` in [0, 1], beside each other."""
        row = np.concatenate(list(painted.cpu().numpy()), axis=2)
        self.writer.add_image("held out", row, iteration)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()
