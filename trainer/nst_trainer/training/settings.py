"""What decides the result of a training. Nothing here needs torch, so the command line starts at once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

from nst_core.errors import InputError
from nst_core.options import option
from nst_trainer.loss_settings import LossWeights

Architecture = Literal["johnson", "fast", "ulyanov"]

PHASES = ((0.6, 0.5), (0.85, 0.75), (1.0, 1.0))
"""Where crops grow: until a share of the iterations, their side over the last side.

Colours and strokes are learned as well on small crops, at a quarter of the arithmetic; the last part learns how they
continue over a whole image.
"""


@dataclass(frozen=True)
class TrainingSettings:
    """What decides the result; a run is resumed only with the same settings.

    `crop` (pixels) is the side of the crops at the end; see `crop_at` for the beginning.
    `style_size` (pixels) is the longer side of the style image: larger gives larger strokes.
    """

    arch: Architecture = option(
        "johnson", "The network: Johnson et al.'s, one for CPUs, or Ulyanov et al.'s noise pyramid."
    )
    texture: bool = option(False, "Learn a texture from noise, without photographs (ulyanov).")
    width: float = option(1.0, "Share of the channels (johnson: 32, 64, 128; fast: 32, 48; ulyanov: 8 a size).")
    iterations: int = option(4000, "Steps of SOAP (paper: 40000, of Adam).")
    batch: int = option(4, "Photographs in a step.")
    crop: int = option(256, "Side of the crops at the end, pixels.")
    grow: bool = option(True, "Begin with small crops; without, to go on from a trained style, all are whole.")
    style_size: int = option(448, "Longer side of the style image, pixels: larger strokes.")
    learning_rate: float = option(3e-3, "SOAP's, at its highest.")
    content_weight: float = option(LossWeights.content, "More keeps more of the content.")
    style_weight: float = option(LossWeights.style, "More gives more of the style.")
    tv_weight: float = option(LossWeights.total_variation, "More smooths (total variation).")
    temporal_weight: float = option(
        0.0, "Temporal consistency of video: weight of the change after small shifts and noise; 100 is much."
    )
    seed: int = option(0, "Decides initial weights, order and crops.")

    def __post_init__(self) -> None:
        for name in ("width", "iterations", "batch", "learning_rate", "style_size"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}: it must be above 0")
        if self.arch not in get_args(Architecture):
            raise InputError(f"arch is {self.arch!r}: choose {', '.join(get_args(Architecture))}")
        if self.texture and (self.arch != "ulyanov" or self.temporal_weight):
            raise InputError("a texture is learned by --arch ulyanov, and without --temporal-weight")
        if self.crop < 64 or self.crop % self.grid:
            raise InputError(f"crop is {self.crop}: it must be a multiple of {self.grid}, from 64 up")

    @property
    def grid(self) -> int:
        """What crops are multiples of, pixels: the coarsest grid of the network or the loss network."""
        return 32 if self.arch == "ulyanov" else 16

    @property
    def loss_weights(self) -> LossWeights:
        """The weights of the terms; a texture has no content."""
        return LossWeights(0.0 if self.texture else self.content_weight, self.style_weight, self.tv_weight)

    def crop_at(self, iteration: int) -> int:
        """The side of that iteration's crops, pixels; see `crop_after`."""
        return self.crop_after(iteration / self.iterations)

    def crop_after(self, done: float) -> int:
        """The side of the crops when a share `done` of the iterations is done: see `PHASES` if they `grow`."""
        share = next((share for end, share in PHASES if done < end), 1.0) if self.grow else 1.0
        return max(64, round(self.crop * share / self.grid) * self.grid)

    def phases(self) -> list[tuple[float, int]]:
        """Share of the iterations at each phase's end, and the side of its crops, in order."""
        return [(end, self.crop_after(end - 0.01)) for end, _ in PHASES] if self.grow else [(1.0, self.crop)]

    def crops(self) -> dict[int, int]:
        """How many iterations each side of the crops gets, small to large."""
        sides = [self.crop_at(iteration) for iteration in range(self.iterations)]
        return {side: sides.count(side) for side in sorted(set(sides))}

    def work_shares(self) -> list[float]:
        """For 0 ... `iterations` steps done, the share of all the run's pixels: time grows with pixels."""
        pixels = list(accumulate((self.crop_at(i) ** 2 for i in range(self.iterations)), initial=0))
        return [done / pixels[-1] for done in pixels]

    def learning_rate_at(self, iteration: int, begun: int = 0, done: float | None = None) -> float:
        """Falls linearly to zero after a warm-up of 50 iterations, or a tenth of them (the paper's is constant).

        The warm-up is from iteration `begun` on. `done` is the share of the training that is behind, `iteration` over
        `iterations` if not given.
        """
        warm_up = max(1, min(50, self.iterations // 10))
        done = iteration / self.iterations if done is None else done
        return self.learning_rate * min(1.0, (iteration - begun + 1) / warm_up) * (1.0 - done)
