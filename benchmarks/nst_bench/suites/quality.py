"""What a trained network is worth: the iterations of the optimisation that reach its loss.

As in figure 5 of Johnson et al. 2016. And what the loss does not see: whether a moving picture flickers, whether
the network's grid shows, whether there is a frame at the border.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nst_bench.machine.description import document_header
from nst_core.errors import InputError
from nst_core.images import ImageData, fit, open_image
from nst_trainer.checkpoint import Checkpoint, parameters
from nst_trainer.images import to_tensor
from nst_trainer.loss_settings import LossWeights
from nst_trainer.losses import checkerboard_loss
from nst_trainer.networks import StyledNetwork
from nst_trainer.optimization.gatys import ImageOptimization, Iteration
from nst_trainer.optimization.settings import PRESETS, OptimizationSettings
from nst_trainer.training.settings import TrainingSettings
from nst_trainer.vgg import Weights

SCHEMA = "nst-bench-quality/1"
CURVE = 120
"""Iterations of the optimisation that are drawn for every photograph."""

LONGEST = 500
"""Where the search for a network's worth ends."""

Paint = Callable[[Tensor], Tensor]
"""Pictures `[N, 3, H, W]` in [0, 1] to stylised ones."""


def measure(
    checkpoint: Checkpoint,
    name: str,
    style: Path,
    photos: Sequence[Path],
    weights: Weights,
    *,
    size: int = 256,
    device: torch.device | None = None,
    on_progress: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """Measure the style called as the picture `style`, or the only one, on `photos` cut to `size`^2; a document.

    The optimisation runs on `device`, the CPU if not given; the network on the CPU.

    Raises `InputError` for a network without this style, and for a texture network.
    """
    paint = painter(checkpoint, style.stem)
    painting = painting_of(checkpoint, style)
    settings = baseline(checkpoint, size, LONGEST, painting)
    rows = []
    for photo in photos:
        picture = fit(open_image(photo), size, size)
        run = ImageOptimization(to_tensor(picture), [painting], settings, weights, device=device or torch.device("cpu"))
        row = {"photo": photo.name, **network_losses(run, paint), **appearance(paint, picture)}
        curve, in_range = _curves(run, row["loss"])
        row |= {
            "worth": iterations_worth(curve, row["loss"]),
            "worth_in_range": iterations_worth(in_range, row["loss"]),
        }
        rows.append(row | {"curve": curve[:CURVE], "curve_in_range": in_range[:CURVE], "iterations": len(curve)})
        on_progress(f"{photo.name}: loss {row['loss']:.3f}, worth {row['worth'] or f'more than {LONGEST}'}")
    worths = [row["worth"] or LONGEST for row in rows]
    return {
        **document_header(SCHEMA),
        "model": {
            "name": name,
            "style": style.name,
            "network": checkpoint.network.name,
            **checkpoint.network.arguments,
            "parameters": parameters(checkpoint.network),
        },
        "size": size,
        "worth": _spread(worths),
        "worth_in_range": _spread([row["worth_in_range"] or row["iterations"] for row in rows]),
        "photos": rows,
    }


def painting_of(checkpoint: Checkpoint, style: Path) -> Tensor:
    """The style's picture `[1, 3, H, W]` as the network's training had it: made smaller if need be, never larger."""
    return to_tensor(open_image(style, max_side=_style_size(checkpoint)))


def _style_size(checkpoint: Checkpoint) -> int:
    size: int = checkpoint.training.get("style_size", TrainingSettings.style_size)
    return size


def baseline(
    checkpoint: Checkpoint, size: int, iterations: int, painting: Tensor | None = None
) -> OptimizationSettings:
    """Johnson's baseline at `size` with the weights of the network's own training.

    It leaves a `painting` `[1, 3, H, W]` as it is; without one the style has the size of the training's settings.
    """
    trained = checkpoint.training
    style_size = _style_size(checkpoint) if painting is None else max(painting.shape[2:])
    return replace(
        PRESETS["johnson2016-baseline"],
        size=size,
        iterations=iterations,
        content_weight=trained.get("content_weight", LossWeights.content),
        style_weight=trained.get("style_weight", LossWeights.style),
        tv_weight=trained.get("tv_weight", LossWeights.total_variation),
        style_scale=style_size / size,
    )


def painter(checkpoint: Checkpoint, style: str) -> Paint:
    """The network with the style called `style`, or its only one; values in [0, 1]."""
    network = checkpoint.network
    if network.arguments.get("texture"):
        raise InputError("a texture network paints no photographs: there is nothing to compare it with")
    mix: Tensor | None = None
    if network.styles > 1:
        if style not in checkpoint.styles:
            raise InputError(f"no style {style!r}; the checkpoint has {', '.join(checkpoint.styles)}")
        mix = torch.eye(network.styles)[checkpoint.styles.index(style)]

    def paint(pictures: Tensor) -> Tensor:
        return _padded(network, pictures, mix)

    return paint


@torch.no_grad()
def _padded(network: StyledNetwork, pictures: Tensor, mix: Tensor | None) -> Tensor:
    height, width = pictures.shape[2:]
    edges = (0, -width % network.multiple, 0, -height % network.multiple)
    padded = torch.nn.functional.pad(pictures, edges, mode="reflect")
    rows = None if mix is None else mix.expand(len(pictures), -1)
    painted: Tensor = network(padded, rows)[:, :, :height, :width].clamp(0.0, 1.0)
    return painted


@torch.no_grad()
def network_losses(run: ImageOptimization, paint: Paint) -> dict[str, Any]:
    """The network's losses by the optimisation's own measure, weighted; style also by layer."""
    assert run.content is not None
    losses = run.loss(paint(run.content.cpu()).to(run.device), run.target)
    return {
        "loss": losses.total.item(),
        "content": losses.content.item(),
        "style": losses.style.item(),
        "total_variation": losses.total_variation.item(),
        "style_by_layer": {layer: value.item() for layer, value in losses.style_by_layer.items()},
    }


def _curves(run: ImageOptimization, goal: float) -> tuple[list[float], list[float]]:
    """The optimisation's loss by iteration, until it is at `goal` and long enough to be drawn.

    First of the picture as it is, second of the picture with its values cut to [0, 1], as a file would hold it
    and as Johnson et al. have it after every iteration (section 4.1); a network's result is within the range.
    """
    seen: list[Iteration] = []
    in_range: list[float] = []
    while len(seen) < CURVE or min(one.total for one in seen) > goal:
        with torch.no_grad():
            in_range.append(run.loss(run.current.parameters.pixels().clamp(0.0, 1.0), run.target).total.item())
        if not run.step(seen.append):
            in_range.pop()
            break
    return [one.total for one in seen], in_range


def _spread(worths: Sequence[int]) -> dict[str, Any]:
    return {
        "median": float(np.median(worths)),
        "quartiles": np.percentile(worths, [25, 75]).tolist(),
        "minimum": min(worths),
        "maximum": max(worths),
    }


def iterations_worth(curve: Sequence[float], goal: float) -> int | None:
    """The first iteration, counted from 1, whose loss is at or below `goal`; None if there is none."""
    return next((number for number, loss in enumerate(curve, 1) if loss <= goal), None)


def appearance(paint: Paint, photo: ImageData) -> dict[str, float]:
    """What the loss does not see, in levels of 255."""
    pictures = to_tensor(photo)
    painted = paint(pictures)
    return {
        "warping_error": warping_error(paint, pictures),
        "lattice": lattice_levels(painted),
        "border": border_levels(painted),
    }


def warping_error(paint: Paint, picture: Tensor, frames: int = 4) -> float:
    """Root mean square between frames of a pan after the motion is undone, in levels of 255.

    The camera moves by (1, 3) pixels a frame over `picture` `[1, 3, H, W]` and sees noise of two levels, so
    the true motion is known and nothing is hidden but at the border, which does not count.
    """
    generator = torch.Generator().manual_seed(0)
    down, right = 1, 3
    height, width = picture.shape[2] - down * frames, picture.shape[3] - right * frames
    painted = []
    for frame in range(frames):
        top, left = down * frame, right * frame
        seen = picture[:, :, top : top + height, left : left + width]
        painted.append(paint(seen + torch.randn(seen.shape, generator=generator) * (2.0 / 255.0)))
    edge = 8
    errors = [
        (before[:, :, down:, right:] - after[:, :, :-down, :-right])[:, :, edge:-edge, edge:-edge].square().mean()
        for before, after in pairwise(painted)
    ]
    return 255.0 * float(torch.stack(errors).mean().sqrt())


def lattice_levels(pictures: Tensor) -> float:
    """How much the network's grid of 4 pixels shows, rms in levels of 255 (`nst_trainer.losses.checkerboard_loss`)."""
    height, width = (side // 4 * 4 for side in pictures.shape[2:])
    return 255.0 * float(checkerboard_loss(pictures[:, :, :height, :width]).sqrt())


def border_levels(pictures: Tensor) -> float:
    """The mean of the outermost pixels less that of the ring 16 pixels further in, in levels of 255."""
    outer, inner = _ring(pictures, 0), _ring(pictures, 16)
    return 255.0 * float(outer.mean() - inner.mean())


def _ring(pictures: Tensor, distance: int) -> Tensor:
    inside = pictures[:, :, distance : pictures.shape[2] - distance, distance : pictures.shape[3] - distance]
    sides = (inside[:, :, 0], inside[:, :, -1], inside[:, :, :, 0], inside[:, :, :, -1])
    return torch.cat([side.flatten() for side in sides])
