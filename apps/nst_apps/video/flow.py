"""Optical flow between frames, and temporal smoothing that reduces a stylized video's flicker."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import cv2
import numpy as np
from numpy.typing import NDArray

from nst_core.images import Pixels

Floats = NDArray[np.float32]

KEPT_FRACTION = 0.7
"""Weight of the previous frame in a pixel whose motion is certain."""

SAME_GREY_DIFFERENCE = 25.0
"""Maximum absolute difference (of 255) at which a moved pixel counts as the same."""


@dataclass(frozen=True, eq=False)
class Motion:
    """Where each pixel of a frame was in the previous frame: `x`, `y` float32 `[H, W]`, in pixels.

    `trust` float32 `[H, W]` goes from 0, where the pixel was hidden, outside or different, to 1.
    """

    x: Floats
    y: Floats
    trust: Floats

    def carried(self, before: Pixels) -> Pixels:
        """Warp the previous frame `uint8 [H, W, 3]` along the motion."""
        return cv2.remap(before, self.x, self.y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[return-value]


def motion(before: Pixels, after: Pixels) -> Motion:
    """Estimate the motion between two content frames `uint8 [H, W, 3]` with dense inverse search (Kroeger et al. 2016).

    A pixel is trusted if forward and backward flow agree within the bound of Sundaram et al. (2010) and
    its grey value is the same. Safe to call from several threads.
    """
    was, now = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after))
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    back = search.calc(now, was, None)  # type: ignore[call-overload]
    forth = search.calc(was, now, None)  # type: ignore[call-overload]
    height, width = now.shape
    x = np.arange(width, dtype=np.float32)[None] + back[..., 0]
    y = np.arange(height, dtype=np.float32)[:, None] + back[..., 1]
    onward = cv2.remap(forth, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    astray = np.square(back + onward).sum(-1)
    length = np.square(back).sum(-1) + np.square(onward).sum(-1)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    grey = cv2.remap(was, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    certain = (astray <= 0.01 * length + 0.5) & inside & (cv2.absdiff(grey, now) <= SAME_GREY_DIFFERENCE)
    known = certain.astype(np.float32)
    return Motion(x, y, known * cv2.blur(known, (7, 7)))  # soft borders, so that none is seen


@dataclass
class Smoother:
    """Blends each stylized frame with the previous one, warped along the motion of the content.

    `stylized` and `smoothed` are the last frame before and after smoothing, None at the beginning. The squares are
    sums of the squared warping errors (Lai et al. 2018) over `pixels` trusted values.
    """

    stylized: Pixels | None = None
    smoothed: Pixels | None = None
    squares_before: float = 0.0
    squares_after: float = 0.0
    pixels: float = 0.0

    def smooth(self, stylized: Pixels, moved: Motion | None) -> Pixels:
        """Smooth the next stylized frame `uint8 [H, W, 3]`; `moved` is None for the first."""
        result = stylized
        if moved is not None and self.stylized is not None and self.smoothed is not None:
            carried = moved.carried(self.smoothed).astype(np.float32)
            fraction = (KEPT_FRACTION * moved.trust)[..., None]
            result = (stylized + fraction * (carried - stylized) + 0.5).clip(0, 255).astype(np.uint8)
            weight = moved.trust[..., None]
            self.squares_before += _squares(stylized, moved.carried(self.stylized), weight)
            self.squares_after += _squares(result, carried, weight)
            self.pixels += 3.0 * float(moved.trust.sum())
        self.stylized, self.smoothed = stylized, result
        return result

    @property
    def warping_error(self) -> tuple[float, float]:
        """The warping error before and after smoothing: root mean square difference (of 255) along the motion."""
        n = max(self.pixels, 1.0)
        return sqrt(self.squares_before / n), sqrt(self.squares_after / n)


def _squares(frame: Pixels, other: NDArray[np.floating] | Pixels, weight: Floats) -> float:
    difference = frame.astype(np.float32) - other
    return float((weight * difference * difference).sum(dtype=np.float64))
