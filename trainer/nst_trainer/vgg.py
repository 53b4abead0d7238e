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

from nst_core.errors import InputError
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


class Vgg16(nn.Module):
    """Frozen features of pictures; gradients flow to the picture, never to the weights.

    `pooling`: `max` is the network as trained; Gatys et al. (2016, section 2) found that `average`
    gives slightly more appealing pictures.
    """

    mean: Tensor

    def __init__(self, weights: Weights, pooling: Literal["max", "average"] = "max") -> None:
        super().__init__()
        self.pooling = pooling
        self.convolutions = nn.ModuleDict()
        for name in CONVOLUTIONS:
            weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
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
        features: dict[str, Tensor] = {}
        x = (pictures * 255.0 - self.mean).contiguous(memory_format=torch.channels_last)
        for name in LAYERS:
            if name.startswith("conv"):
                x = self.convolutions[name](x)
            elif name.startswith("relu"):
                # In place saves a copy of each feature map, unless somebody keeps the one before.
                x = F.relu(x, inplace=name.replace("relu", "conv") not in wanted)
            else:
                x = F.max_pool2d(x, 2) if self.pooling == "max" else F.avg_pool2d(x, 2)
            if name in wanted:
                features[name] = x
                if len(features) == len(wanted):
                    break
        return features
