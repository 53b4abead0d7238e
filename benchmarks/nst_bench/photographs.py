"""The images that every suite measures with: photographs that ship with nst, so that results can be repeated."""

from __future__ import annotations

from torch import Tensor

from nst_core.images import Pixels, fit, open_image, sample_photographs
from nst_trainer.images import to_tensor


def sample_photograph(height: int, width: int) -> Pixels:
    """A content image of these sides in pixels, `uint8 [H, W, 3]`."""
    return fit(open_image(sample_photographs()[-1]), width, height).pixels


def content_tensor(side: int) -> Tensor:
    """A square content image for PyTorch, `[1, 3, side, side]`."""
    return to_tensor(fit(open_image(sample_photographs()[-1]), side, side))


def style_tensor() -> Tensor:
    """A photograph in the place of a style image, `[1, 3, H, W]`: a style does not change how long anything takes."""
    return to_tensor(open_image(sample_photographs()[0]))
