"""Convert an application's images to the batch that is sent, and back."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from PIL import Image

from nst_client.transports import cuda_pixels
from nst_client.transports.cuda_pixels import CudaPixels, pixels_on_gpu
from nst_core.errors import InputError
from nst_core.images import Pixels


def as_batch(content: Any) -> Pixels:
    """Convert an array to `uint8 [N, H, W, 3]`; an array on a GPU becomes `CudaPixels`.

    Raises `InputError` for any other object, type or shape.
    """
    if not isinstance(content, np.ndarray) and (found := pixels_on_gpu(content)):
        return cast(Pixels, found)
    if not isinstance(content, np.ndarray):
        raise InputError(
            f"pixels are a {type(content).__name__}; pass a NumPy array, a Pillow image or an array on a GPU"
        )
    if content.dtype != np.uint8 or content.ndim not in (3, 4) or content.shape[-1] != 3 or not content.size:
        raise InputError(f"pixels are {content.dtype} {content.shape}; pass uint8 [H, W, 3] or [N, H, W, 3]")
    return np.ascontiguousarray(content if content.ndim == 4 else content[None])


def like_content(content: Any, stylized: Any) -> Any:
    """Return a stylized batch as the same kind of array as the content, with as many dimensions."""
    if isinstance(stylized, CudaPixels):
        return cuda_pixels.like(content, stylized)
    return stylized if content.ndim == 4 else stylized[0]


def pillow_image(pixels: Pixels, alpha: Pixels | None) -> Image.Image:
    """Return a Pillow image of `uint8 [H, W, 3]` pixels, with the opacity `alpha` `[H, W]` if there is any."""
    image = Image.fromarray(pixels)
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    return image
