"""The loss network: VGG-16's features by layer name.

Simonyan and Zisserman 2014, configuration D, without the classifier. Layers are `conv1_1`,
`relu1_1`, ... `relu5_3` and `pool1` ... `pool5`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nst_core.errors import InputError
from nst_trainer.loss_settings import Pooling
from nst_trainer.weights import CONVOLUTIONS, Weights

MEAN = (123.68, 116.779, 103.939)
"""ImageNet's mean pixel in red, green, blue, of 255, as the authors subtracted it."""


def _layer_names() -> tuple[str, ...]:
    names: list[str] = []
    for position, convolution in enumerate(CONVOLUTIONS):
        names += [convolution, convolution.replace("conv", "relu")]
        last_of_block = CONVOLUTIONS[position + 1 : position + 2]
        if not last_of_block or last_of_block[0][4] != convolution[4]:
            names.append(f"pool{convolution[4]}")
    return tuple(names)


LAYERS = _layer_names()

BLOCKS = tuple(tuple(name for name in LAYERS if name[4] == str(block)) for block in range(1, 6))
"""The layers between two poolings, each block with the pooling at its end."""


class Vgg16(nn.Module):
    """Frozen features of pictures; gradients flow to the picture, never to the weights."""

    mean: Tensor

    def __init__(
        self, weights: Weights, *, pooling: Pooling = "max", tileable: bool = False, recompute: bool = False
    ) -> None:
        """`pooling`: `max` is the network as trained; `average` gives slightly more appealing pictures
        (Gatys et al. 2016, section 2). `tileable`: the left edge is the right edge's neighbour, and the
        upper the lower's. `recompute`: keep a block's input only and compute the block
        again in the backward pass: 0.7 of the memory at 768 pixels, the same time within a run's spread.
        """
        super().__init__()
        self.pooling = pooling
        self.recompute = recompute
        self.convolutions = nn.ModuleDict()
        edges: Literal["circular", "zeros"] = "circular" if tileable else "zeros"
        for name in CONVOLUTIONS:
            weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, padding_mode=edges)
            convolution.weight.data, convolution.bias.data = weight.clone(), bias.clone()  # type: ignore[union-attr]
            self.convolutions[name] = convolution
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pictures: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Features of RGB pictures `[N, 3, H, W]` in [0, 1] at the named layers, `[N, C, H', W']` each.

        Nothing is computed beyond the deepest layer asked for. Raises `InputError` for an unknown
        layer, or for pictures too small to reach it (16 pixels reach every layer but `pool5`).
        """
        wanted = set(layers)
        if unknown := wanted - set(LAYERS):
            raise InputError(f"no layer {', '.join(sorted(unknown))} in VGG-16; layers are {', '.join(LAYERS)}")
        last = max((LAYERS.index(name) for name in wanted), default=-1)
        if last > LAYERS.index("pool4") and min(pictures.shape[2:]) < 16:
            raise InputError(f"{pictures.shape[3]}x{pictures.shape[2]} is too small for {LAYERS[last]}")
        x = (pictures * 255.0 - self.mean).contiguous(memory_format=torch.channels_last)
        features: dict[str, Tensor] = {}
        for block in BLOCKS:
            names = [name for name in block if LAYERS.index(name) <= last]
            if not names:
                break
            if self.recompute and x.requires_grad:
                x, found = checkpoint(self._block, x, names, wanted, use_reentrant=False)
            else:
                x, found = self._block(x, names, wanted)
            features |= found
        return features

    def _block(self, x: Tensor, names: list[str], wanted: set[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The layers `names` after each other, and the features of those that are wanted."""
        found: dict[str, Tensor] = {}
        for name in names:
            if name.startswith("conv"):
                x = self.convolutions[name](x)
            elif name.startswith("relu"):
                # In place saves a copy of each feature map, unless somebody keeps the one before.
                x = F.relu(x, inplace=name.replace("relu", "conv") not in wanted)
            else:
                x = F.max_pool2d(x, 2) if self.pooling == "max" else F.avg_pool2d(x, 2)
            if name in wanted:
                found[name] = x
        return x, found
