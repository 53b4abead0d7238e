"""Convert images to tensors and back, and refuse blank images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nst_core.errors import InputError
from nst_core.images import ImageData, Pixels, open_image

BLANK_MAXIMUM_SPAN = 2
"""Maximum range (of 255) of each channel of a blank image, which has one colour and JPEG's noise."""


def is_blank(pixels: Pixels) -> bool:
    """Return whether `uint8 [H, W, 3]` is one colour all over.

    Instance normalisation divides by a standard deviation of 0 there: rounding errors are multiplied by 316 in each
    layer, and the gradient has a norm of 1e18 or is infinite. An image of two colours has an ordinary gradient
    (dev/LOG.md).
    """
    flat = pixels.reshape(-1, pixels.shape[-1])
    return bool((flat.max(axis=0) - flat.min(axis=0) <= BLANK_MAXIMUM_SPAN).all())


def open_style(path: Path, *, max_side: int | None = None) -> ImageData:
    """Open a style image as `open_image` does; raises `InputError` for a blank one, which has no style."""
    image = open_image(path, max_side=max_side)
    if is_blank(image.pixels):
        raise InputError(f"{path} is one colour all over and has no style; give an image with strokes or forms")
    return image


def to_tensor(image: ImageData) -> Tensor:
    """Return the image's pixels as `[1, 3, H, W]`, FP32 in [0, 1]."""
    return torch.from_numpy(image.pixels.transpose(2, 0, 1)[None].astype(np.float32)) / 255.0


def to_image(tensor: Tensor) -> ImageData:
    """Return `[1, 3, H, W]` in [0, 1] as an image of 8-bit pixels, rounded."""
    rounded = tensor.detach()[0].cpu().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return ImageData(np.ascontiguousarray(rounded.permute(1, 2, 0).numpy()))
