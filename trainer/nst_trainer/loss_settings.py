"""Settings of the perceptual loss, shared by training and optimisation; they need no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Pooling = Literal["max", "average"]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of the perceptual loss.

    `content` multiplies squared differences of features of pixels in [0, 255], as in the papers' Caffe
    networks; `style` a relative difference of Gram matrices; `total_variation` squared differences of pixels
    in [0, 1]. With the defaults and The Starry Night, eight unstylized photographs have a style term of 5.9
    to 18, and white noise has a content term of 3.5 to 6.3.
    """

    content: float = 1e-5
    style: float = 2.5
    total_variation: float = 1.0
