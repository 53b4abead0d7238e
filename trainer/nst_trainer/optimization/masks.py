"""Regions of the content image that take their style from regions of the style images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nst_core.errors import InputError
from nst_core.images import open_image

MAXIMUM_COLORS = 16


def read_masks(content: Path, styles: Sequence[Path]) -> tuple[Tensor, list[Tensor]]:
    """Read masks of flat colours; return `[K, 1, H, W]` of 0 and 1 for each image, the K colours in equal order."""
    packed = [open_image(path).pixels.astype(np.int32) @ np.array([65536, 256, 1]) for path in (content, *styles)]
    colors = np.unique(packed[0])
    if len(colors) > MAXIMUM_COLORS:
        raise InputError(
            f"{content} has {len(colors)} colours; give a PNG with one flat colour per region, at most {MAXIMUM_COLORS}"
        )
    for path, pixels in zip(styles, packed[1:], strict=True):
        if missing := set(colors.tolist()) - set(np.unique(pixels).tolist()):
            names = ", ".join(f"#{color:06x}" for color in sorted(missing))
            raise InputError(f"{path} lacks the colour {names} of {content}; give both masks the same colours")
    guides = [
        torch.from_numpy((pixels[None] == colors[:, None, None])[:, None].astype(np.float32)) for pixels in packed
    ]
    return guides[0], guides[1:]
