"""What decides the result of a training. Nothing here needs torch, so the command line starts at once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from nst_core.errors import InputError
from nst_core.options import option


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of the perceptual loss.

    `content` multiplies squared differences of features of pixels 0-255, as in the papers' Caffe
    networks; `style` a relative difference of Gram matrices; `total_variation` one of pixels 0-1.
    With the defaults a photograph starts with a style term of about 8 and noise with a content
    term of about 4.
    """

    content: float = 1e-5
    style: float = 2.5
    total_variation: float = 1.0


@dataclass(frozen=True)
class TrainingSettings:
    """What decides the result; a run is resumed only with the same settings.

    `crop` (pixels) is the side of the crops at the end; see `crop_at` for the beginning.
    `style_size` (pixels) is the longer side of the style picture: larger paints larger strokes.
    """

    width: float = option(1.0, "Share of the paper's 32, 64 and 128 channels.")
    iterations: int = option(4000, "Steps of Adam (paper: 40000).")
    batch: int = option(4, "Photographs in a step.")
    crop: int = option(256, "Side of the crops at the end, pixels.")
    style_size: int = option(448, "Longer side of the style picture, pixels: larger strokes.")
    learning_rate: float = option(2e-3, "Adam's, at its highest.")
    content_weight: float = option(LossWeights.content, "More keeps more of the photograph.")
    style_weight: float = option(LossWeights.style, "More gives more of the painting.")
    tv_weight: float = option(LossWeights.total_variation, "More smooths (total variation).")
    seed: int = option(0, "Decides initial weights, order and crops.")

    def __post_init__(self) -> None:
        for name in ("width", "iterations", "batch", "learning_rate", "style_size"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}: it must be above 0")
        if self.crop < 64 or self.crop % 16:
            raise InputError(f"crop is {self.crop}: it must be a multiple of 16, from 64 up")

    @property
    def loss_weights(self) -> LossWeights:
        """The weights of the terms."""
        return LossWeights(self.content_weight, self.style_weight, self.tv_weight)

    def crop_at(self, iteration: int) -> int:
        """Crops grow: half the side for 60 % of the iterations, three quarters until 85 %, then all.

        Colours and strokes are learned as well on small crops, at a quarter of the arithmetic;
        the last part learns how they continue over a whole picture.
        """
        done = iteration / self.iterations
        share = 0.5 if done < 0.6 else 0.75 if done < 0.85 else 1.0
        return max(64, round(self.crop * share / 16) * 16)

    def work_shares(self) -> list[float]:
        """For 0 ... `iterations` steps done, the share of all the run's pixels: time grows with pixels."""
        pixels = list(accumulate((self.crop_at(i) ** 2 for i in range(self.iterations)), initial=0))
        return [done / pixels[-1] for done in pixels]

    def learning_rate_at(self, iteration: int) -> float:
        """Falls linearly to zero after a warm-up of 50 iterations (the paper's is constant)."""
        return self.learning_rate * min(1.0, (iteration + 1) / 50) * (1.0 - iteration / self.iterations)
