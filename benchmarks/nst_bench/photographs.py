"""The images that all suites measure with: photographs that ship with nst, so that results are reproducible."""

from __future__ import annotations

from torch import Tensor

from nst_core.images import Pixels, fit, open_image, sample_photographs
from nst_trainer.images import to_tensor


def sample_photograph(height: int, width: int) -> Pixels:
    """Return a content image of `height` x `width` pixels, `uint8 [H, W, 3]`."""
    return fit(open_image(sample_photographs()[-1]), width, height).pixels


def content_tensor(side: int) -> Tensor:
    """Return a square content image for PyTorch, `[1, 3, side, side]` in [0, 1]."""
    return to_tensor(fit(open_image(sample_photographs()[-1]), side, side))


def style_tensor() -> Tensor:
    """Return a photograph in place of a style image, `[1, 3, H, W]` in [0, 1]; the style does not affect the speed."""
    return to_tensor(open_image(sample_photographs()[0]))
