"""Settings that determine the result of a training. Nothing here imports torch, so the command line starts fast."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

from nst_core.errors import InputError
from nst_core.options import option
from nst_trainer.loss_settings import LossWeights

Architecture = Literal["johnson", "fast", "ulyanov"]

PHASES = ((0.6, 0.5), (0.85, 0.75), (1.0, 1.0))
"""How crops grow: up to each share of the iterations, their side as a share of the final side.

Small crops teach colours and strokes as well, at a quarter of the arithmetic; the last part teaches how they continue
over a whole image.
"""


@dataclass(frozen=True)
class TrainingSettings:
    """Settings that determine the result; a run can only be resumed with the same settings.

    `crop` (pixels) is the final side of the crops; see `crop_at` for earlier ones.
    `style_size` (pixels) is the longer side of the style image: larger gives larger strokes.
    """

    iterations: int = option(4000, "Number of training iterations.")
    style_size: int = option(448, "Longer side of the style image in pixels; larger gives larger strokes.", "Style")
    arch: Architecture = option(
        "johnson", "Network: johnson (best images), fast (for CPUs) or ulyanov (texture network).", "Model"
    )
    width: float = option(1.0, "Width multiplier: factor on the number of channels; less is faster.", "Model")
    texture: bool = option(False, "Train a texture network from noise, without photographs (ulyanov).", "Model")
    style_weight: float = option(LossWeights.style, "Weight of the style loss; more stylizes more strongly.", "Losses")
    content_weight: float = option(
        LossWeights.content, "Weight of the content loss; more keeps more of the content image.", "Losses"
    )
    tv_weight: float = option(
        LossWeights.total_variation, "Weight of the total variation loss; more gives smoother images.", "Losses"
    )
    temporal_weight: float = option(
        0.0, "Weight of the temporal consistency loss for video; 0 is off, 100 is strong.", "Losses"
    )
    batch: int = option(4, "Photographs per iteration.", "Schedule")
    crop: int = option(
        256, "Final side of the crops in pixels: a multiple of 16 (ulyanov: 32), at least 64.", "Schedule"
    )
    grow: bool = option(True, "Start with small crops; use --no-grow with a trained style (--from).", "Schedule")
    learning_rate: float = option(3e-3, "Peak learning rate.", "Schedule")
    seed: int = option(0, "Random seed for initial weights, photographs and crops.", "Schedule")

    def __post_init__(self) -> None:
        for name in ("width", "iterations", "batch", "learning_rate", "style_size"):
            if getattr(self, name) <= 0:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give a value above 0")
        if self.arch not in get_args(Architecture):
            raise InputError(f"--arch is {self.arch!r}; choose from {', '.join(get_args(Architecture))}")
        if self.texture and (self.arch != "ulyanov" or self.temporal_weight):
            raise InputError("--texture works only with --arch ulyanov and without --temporal-weight")
        if self.crop < 64 or self.crop % self.grid:
            raise InputError(f"--crop is {self.crop}; give a multiple of {self.grid}, at least 64")

    @property
    def grid(self) -> int:
        """The multiple, in pixels, of every crop: the coarsest grid of the network or the loss network."""
        return 32 if self.arch == "ulyanov" else 16

    @property
    def loss_weights(self) -> LossWeights:
        """The weights of the losses; a texture has no content loss."""
        return LossWeights(0.0 if self.texture else self.content_weight, self.style_weight, self.tv_weight)

    def crop_at(self, iteration: int) -> int:
        """Return the side in pixels of an iteration's crops; see `crop_after`."""
        return self.crop_after(iteration / self.iterations)

    def crop_after(self, done: float) -> int:
        """Return the side in pixels of the crops after a share `done` of the iterations; see `PHASES` and `grow`."""
        share = next((share for end, share in PHASES if done < end), 1.0) if self.grow else 1.0
        return max(64, round(self.crop * share / self.grid) * self.grid)

    def phases(self) -> list[tuple[float, int]]:
        """Return the share of the iterations at each phase's end and the side of its crops, in order."""
        return [(end, self.crop_after(end - 0.01)) for end, _ in PHASES] if self.grow else [(1.0, self.crop)]

    def crops(self) -> dict[int, int]:
        """Return the number of iterations by side of the crops, small to large."""
        sides = [self.crop_at(iteration) for iteration in range(self.iterations)]
        return {side: sides.count(side) for side in sorted(set(sides))}

    def work_shares(self) -> list[float]:
        """Return the share of the run's pixels after 0 ... `iterations` steps: time grows with pixels."""
        pixels = list(accumulate((self.crop_at(i) ** 2 for i in range(self.iterations)), initial=0))
        return [done / pixels[-1] for done in pixels]

    def learning_rate_at(self, iteration: int, begun: int = 0, done: float | None = None) -> float:
        """Return the learning rate of an iteration; it falls linearly to zero (the paper's is constant).

        Before that it warms up from iteration `begun` on, for 50 iterations or a tenth of all. `done` is the completed
        share of the training, `iteration / iterations` if not given.
        """
        warm_up = max(1, min(50, self.iterations // 10))
        done = iteration / self.iterations if done is None else done
        return self.learning_rate * min(1.0, (iteration - begun + 1) / warm_up) * (1.0 - done)
