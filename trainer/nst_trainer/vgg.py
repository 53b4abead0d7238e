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

Weights = dict[str, Tensor]
"""`conv1_1.weight` `[64, 3, 3, 3]` ... `conv5_3.bias` `[512]`, FP32, for RGB pixels of 0-255 less `MEAN`."""

CONVOLUTIONS = tuple(
    f"conv{block}_{index}" for block, count in enumerate((2, 2, 3, 3, 3), start=1) for index in range(1, count + 1)
)

MINIMUM_SIDE_PIXELS = 16
"""Minimum side of an image for every layer but `pool5`."""

MEAN = (123.68, 116.779, 103.939)
"""ImageNet's mean pixel (red, green, blue, of 255), which the authors subtract."""


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
"""The layers of each block, with the pooling at its end."""


class Vgg16(nn.Module):
    """The features of images; the weights are frozen, and gradients flow to the image."""

    mean: Tensor

    def __init__(
        self, weights: Weights, *, pooling: Pooling = "max", tileable: bool = False, recompute: bool = False
    ) -> None:
        """`pooling` `max` is the network as trained; `average` gives slightly more appealing images (Gatys et al. 2016,
        section 2). `tileable` pads circularly, so that opposite edges of an image are neighbours. `recompute` stores
        only a block's input and computes the block again in the backward pass: 0.7 of the memory at 768 pixels, and the
        same time within the spread of runs.
        """
        super().__init__()
        self.pooling = pooling
        self.recompute = recompute
        self.convolutions = nn.ModuleDict()
        edges: Literal["circular", "zeros"] = "circular" if tileable else "zeros"
        for name in CONVOLUTIONS:
            weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            # Skip the initial weights, which would take time and draw from the global random generator.
            convolution = nn.utils.skip_init(  # type: ignore[no-untyped-call]
                nn.Conv2d, weight.shape[1], weight.shape[0], 3, padding=1, padding_mode=edges
            )
            convolution.weight.data, convolution.bias.data = weight.clone(), bias.clone()
            self.convolutions[name] = convolution
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Return the features `[N, C, H', W']` of RGB images `[N, 3, H, W]` in [0, 1] at each of the named layers.

        It computes nothing beyond the deepest of `layers`. Raises `InputError` for an unknown layer, and for images
        that are too small for it.
        """
        wanted = set(layers)
        if unknown := wanted - set(LAYERS):
            raise InputError(f"VGG-16 has no layer {', '.join(sorted(unknown))}; choose from {', '.join(LAYERS)}")
        last = max((LAYERS.index(name) for name in wanted), default=-1)
        if last > LAYERS.index("pool4") and min(images.shape[2:]) < MINIMUM_SIDE_PIXELS:
            raise InputError(
                f"{images.shape[3]}x{images.shape[2]} pixels are too few for the layer {LAYERS[last]}; give an image "
                f"of at least {MINIMUM_SIDE_PIXELS} pixels a side, or a layer up to pool4"
            )
        x = (images * 255.0 - self.mean).contiguous(memory_format=torch.channels_last)
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
        """Run the layers `names` in order; return the last output, and the features of those in `wanted`."""
        found: dict[str, Tensor] = {}
        for name in names:
            if name.startswith("conv"):
                x = self.convolutions[name](x)
            elif name.startswith("relu"):
                # In place, to save a copy of each feature map, unless the map before it is wanted, too.
                x = F.relu(x, inplace=name.replace("relu", "conv") not in wanted)
            else:
                x = F.max_pool2d(x, 2) if self.pooling == "max" else F.avg_pool2d(x, 2)
            if name in wanted:
                found[name] = x
        return x, found
