"""Sample trained texture networks."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from nst_core.errors import InputError
from nst_core.images import image_format, save_image
from nst_trainer.checkpoint import load
from nst_trainer.images import to_image

CPU = torch.device("cpu")


@torch.no_grad()
def sample_texture(
    checkpoint: Path, output: Path, shape: tuple[int, int], seed: int, device: torch.device = CPU
) -> None:
    """Write a texture of `shape` (height, width) from a trained texture network and the random `seed`.

    Opposite edges match if height and width are multiples of 16. Raises `InputError` for a checkpoint of another kind.
    """
    image_format(output)
    network = load(checkpoint).network.to(device)
    if not network.arguments.get("texture"):
        raise InputError(
            f"{checkpoint} stylizes images and makes no textures; train a texture network with "
            "nst train --arch ulyanov --texture"
        )
    multiple = network.multiple
    height, width = (max(network.min_side, math.ceil(side / multiple) * multiple) for side in shape)
    empty = torch.zeros(1, 3, height, width, device=device)
    texture = network(empty, None, network.draw_noise(empty, torch.Generator().manual_seed(seed)))
    save_image(to_image(texture[:, :, : shape[0], : shape[1]]), output)
