"""The kinds of images that an application passes to a client, as the batch that is sent, and back again."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from PIL import Image

from nst_client.transports import cuda_pixels
from nst_client.transports.cuda_pixels import CudaPixels, pixels_on_gpu
from nst_core.errors import InputError
from nst_core.images import Pixels


def as_batch(content: Any) -> Pixels:
    """`uint8 [N, H, W, 3]` of an array. Pixels on a GPU become `CudaPixels`, which act as such an array.

    Raises `InputError` for any other object, type or shape.
    """
    if not isinstance(content, np.ndarray) and (found := pixels_on_gpu(content)):
        return cast(Pixels, found)
    if not isinstance(content, np.ndarray):
        raise InputError(
            f"pixels are a {type(content).__name__}: give a NumPy array, an image of Pillow, or an array on a GPU"
        )
    if content.dtype != np.uint8 or content.ndim not in (3, 4) or content.shape[-1] != 3 or not content.size:
        raise InputError(f"pixels are {content.dtype} {content.shape}, expected uint8 [H, W, 3] or [N, H, W, 3]")
    return np.ascontiguousarray(content if content.ndim == 4 else content[None])


def like_content(content: Any, stylized: Any) -> Any:
    """A stylized batch as the kind of array that the content was."""
    if isinstance(stylized, CudaPixels):
        return cuda_pixels.like(content, stylized)
    return stylized if content.ndim == 4 else stylized[0]


def pillow_image(pixels: Pixels, alpha: Pixels | None) -> Image.Image:
    """Pixels as an image of Pillow, with the content image's opacity if it had any."""
    image = Image.fromarray(pixels)
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    return image
