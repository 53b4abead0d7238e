"""A trained network against the optimisation that it replaces: same photograph, style image, loss and weights.

The baseline is that of Johnson et al. 2016, section 4.1: L-BFGS from white noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nst_bench.suite import Document
from nst_core.errors import InputError
from nst_core.images import fit, open_image
from nst_trainer.checkpoint import Checkpoint
from nst_trainer.images import to_tensor
from nst_trainer.loss_settings import LossWeights
from nst_trainer.optimization.gatys import ImageOptimization, Iteration
from nst_trainer.optimization.settings import PRESETS, OptimizationSettings
from nst_trainer.training.settings import TrainingSettings
from nst_trainer.vgg import Weights

Stylize = Callable[[Tensor], Tensor]
"""Takes images `[N, 3, H, W]` in [0, 1] and returns the stylized images."""


class Comparison:
    """A network in the style that is named like the file `style`, or in its only style.

    `style_image` `[1, 3, H, W]` has the size that the network's training used: it is scaled down if necessary, never
    up. Raises `InputError` for a network without this style, and for a texture network.
    """

    def __init__(self, checkpoint: Checkpoint, style: Path) -> None:
        self.checkpoint, self.stylize = checkpoint, stylizer(checkpoint, style.stem)
        self.style_image = to_tensor(open_image(style, max_side=_style_size(checkpoint)))

    def optimization(
        self, photo: Path, size: int, iterations: int, weights: Weights, device: torch.device
    ) -> ImageOptimization:
        """Return the optimisation of a photograph at `size`^2 pixels, with the loss of the network's training."""
        content = to_tensor(fit(open_image(photo), size, size))
        settings = replace(
            johnson_baseline(self.checkpoint, size, iterations), style_scale=max(self.style_image.shape[2:]) / size
        )
        return ImageOptimization(content, [self.style_image], settings, weights, device=device)

    @torch.no_grad()
    def losses(self, run: ImageOptimization) -> Document:
        """Return the weighted losses of the network's image in the terms of an optimisation; style also by layer."""
        assert run.content is not None
        losses = run.loss(self.stylize(run.content.cpu()).to(run.device), run.target)
        return {
            "loss": losses.total.item(),
            "content": losses.content.item(),
            "style": losses.style.item(),
            "total_variation": losses.total_variation.item(),
            "style_by_layer": {layer: value.item() for layer, value in losses.style_by_layer.items()},
        }


def johnson_baseline(checkpoint: Checkpoint, size: int, iterations: int) -> OptimizationSettings:
    """Return Johnson's baseline at `size`^2 pixels, with the loss weights and style size of the network's training."""
    trained = checkpoint.training
    return replace(
        PRESETS["johnson2016-baseline"],
        size=size,
        iterations=iterations,
        content_weight=trained.get("content_weight", LossWeights.content),
        style_weight=trained.get("style_weight", LossWeights.style),
        tv_weight=trained.get("tv_weight", LossWeights.total_variation),
        style_scale=_style_size(checkpoint) / size,
    )


def _style_size(checkpoint: Checkpoint) -> int:
    size: int = checkpoint.training.get("style_size", TrainingSettings.style_size)
    return size


def stylizer(checkpoint: Checkpoint, style: str) -> Stylize:
    """Return a function that stylizes in `style`, or in the network's only style; values in [0, 1]."""
    network = checkpoint.network
    if network.arguments.get("texture"):
        raise InputError("a texture network stylizes no photographs; give a checkpoint of a style")
    if network.styles > 1 and style not in checkpoint.styles:
        raise InputError(f"no style {style!r} in the checkpoint; it has {', '.join(checkpoint.styles)}")

    @torch.no_grad()
    def stylize(images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        edges = (0, -width % network.multiple, 0, -height % network.multiple)
        padded = torch.nn.functional.pad(images, edges, mode="reflect")
        weights = None
        if network.styles > 1:
            weights = torch.eye(network.styles)[[checkpoint.styles.index(style)] * len(images)]
        stylized: Tensor = network(padded, weights)[:, :, :height, :width].clamp(0.0, 1.0)
        return stylized

    return stylize


def losses_until(run: ImageOptimization, goal: float, fewest: int = 1) -> Iterator[float]:
    """Yield the optimisation's loss by iteration until it is at or below `goal`, at least for `fewest` iterations.

    It ends early if no iteration is left. The loss is that of the image as it is, not clipped to [0, 1].
    """
    lowest, seen = float("inf"), list[Iteration]()
    while (lowest > goal or len(seen) < fewest) and run.step(seen.append):
        lowest = min(lowest, seen[-1].total)
        yield seen[-1].total


def equivalent_iterations(curve: list[float], goal: float) -> int | None:
    """Return the first iteration, counted from 1, whose loss is at or below `goal`, or None."""
    return next((number for number, loss in enumerate(curve, 1) if loss <= goal), None)
