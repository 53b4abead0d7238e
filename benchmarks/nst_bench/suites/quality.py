"""How many iterations of the optimisation a trained network is equivalent to: those that reach its loss.

As in figure 5 of Johnson et al. 2016. And what the loss does not see: whether a moving image flickers, whether the
network's grid shows (the checkerboard artifact), and whether its border is brighter or darker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from nst_bench import options
from nst_bench.machine.cuda import torch_device
from nst_bench.plots import Plot, decades, figure
from nst_bench.served.resources import describe_network
from nst_bench.suite import Context, Cost, Document, Effort, Suite
from nst_bench.tables import table
from nst_core.errors import InputError
from nst_core.images import ImageData, find_images, fit, open_image, sample_photographs
from nst_trainer.checkpoint import Checkpoint, load
from nst_trainer.images import to_tensor
from nst_trainer.loss_settings import LossWeights
from nst_trainer.losses import checkerboard_loss
from nst_trainer.networks import StyledNetwork
from nst_trainer.optimization.gatys import ImageOptimization, Iteration
from nst_trainer.optimization.settings import PRESETS, OptimizationSettings
from nst_trainer.training.settings import TrainingSettings
from nst_trainer.weights import vgg16_weights

CURVE = 120
"""Iterations of the optimisation that are drawn for every photograph."""

LONGEST = 500
"""Iterations after which the search for those that are equivalent ends."""

Stylize = Callable[[Tensor], Tensor]
"""Images `[N, 3, H, W]` in [0, 1] to stylized images."""


@dataclass(frozen=True)
class QualityEffort(Effort):
    """The side of the images, pixels."""

    size: int = 256


def measure(
    context: Context[QualityEffort],
    *,
    checkpoint: Annotated[Path, typer.Argument(help="A trained style (.pth).")],
    style: Annotated[Path, typer.Option(help="The style image that it learned.")],
    photos: options.Photos = None,
    full: Annotated[bool, typer.Option("--full", help="At 512 x 512 instead of 256 x 256.")] = False,
    vgg: options.Vgg = None,
) -> Document:
    """Measure how many iterations of the optimisation a network is equivalent to: those that reach its loss."""
    contents = find_images(photos) if photos else sample_photographs()
    trained, weights, device = load(checkpoint), vgg16_weights(vgg), torch_device(context.device)
    size = 512 if full else context.effort.size
    stylize = stylizer(trained, style.stem)
    style_image = style_image_of(trained, style)
    settings = baseline(trained, size, LONGEST, style_image)
    rows = []
    for photo in contents:
        content = fit(open_image(photo), size, size)
        run = ImageOptimization(to_tensor(content), [style_image], settings, weights, device=device)
        row = {"photo": photo.name, **network_losses(run, stylize), **appearance(stylize, content)}
        curve, in_range = _curves(run, row["loss"])
        row |= {
            "equivalent_iterations": equivalent_iterations(curve, row["loss"]),
            "equivalent_iterations_in_range": equivalent_iterations(in_range, row["loss"]),
        }
        rows.append(row | {"curve": curve[:CURVE], "curve_in_range": in_range[:CURVE], "iterations": len(curve)})
        found = row["equivalent_iterations"] or f"more than {LONGEST}"
        context.on_progress(f"{photo.name}: loss {row['loss']:.3f}, equivalent to {found} iterations")
    in_range_found = [row["equivalent_iterations_in_range"] or row["iterations"] for row in rows]
    return {
        "model": {"style": style.name, **describe_network(trained, checkpoint.stem)},
        "size": size,
        "equivalent_iterations": _spread([row["equivalent_iterations"] or LONGEST for row in rows]),
        "equivalent_iterations_in_range": _spread(in_range_found),
        "photos": rows,
    }


def style_image_of(checkpoint: Checkpoint, style: Path) -> Tensor:
    """The style image `[1, 3, H, W]` as the network's training had it: made smaller if need be, never larger."""
    return to_tensor(open_image(style, max_side=_style_size(checkpoint)))


def _style_size(checkpoint: Checkpoint) -> int:
    size: int = checkpoint.training.get("style_size", TrainingSettings.style_size)
    return size


def baseline(
    checkpoint: Checkpoint, size: int, iterations: int, style_image: Tensor | None = None
) -> OptimizationSettings:
    """Johnson's baseline at `size` with the weights of the network's own training.

    It leaves a `style_image` `[1, 3, H, W]` as it is; without it the style has the size of the training's settings.
    """
    trained = checkpoint.training
    style_size = _style_size(checkpoint) if style_image is None else max(style_image.shape[2:])
    return replace(
        PRESETS["johnson2016-baseline"],
        size=size,
        iterations=iterations,
        content_weight=trained.get("content_weight", LossWeights.content),
        style_weight=trained.get("style_weight", LossWeights.style),
        tv_weight=trained.get("tv_weight", LossWeights.total_variation),
        style_scale=style_size / size,
    )


def stylizer(checkpoint: Checkpoint, style: str) -> Stylize:
    """The network with the style called `style`, or its only one; values in [0, 1]."""
    network = checkpoint.network
    if network.arguments.get("texture"):
        raise InputError("a texture network stylizes no photographs: there is nothing to compare it with")
    weights: Tensor | None = None
    if network.styles > 1:
        if style not in checkpoint.styles:
            raise InputError(f"no style {style!r}; the checkpoint has {', '.join(checkpoint.styles)}")
        weights = torch.eye(network.styles)[checkpoint.styles.index(style)]

    return partial(_padded, network, weights)


@torch.no_grad()
def _padded(network: StyledNetwork, style_weights: Tensor | None, images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    edges = (0, -width % network.multiple, 0, -height % network.multiple)
    padded = torch.nn.functional.pad(images, edges, mode="reflect")
    rows = None if style_weights is None else style_weights.expand(len(images), -1)
    stylized: Tensor = network(padded, rows)[:, :, :height, :width].clamp(0.0, 1.0)
    return stylized


@torch.no_grad()
def network_losses(run: ImageOptimization, stylize: Stylize) -> Document:
    """The network's losses by the optimisation's own measure, weighted; style also by layer."""
    assert run.content is not None
    losses = run.loss(stylize(run.content.cpu()).to(run.device), run.target)
    return {
        "loss": losses.total.item(),
        "content": losses.content.item(),
        "style": losses.style.item(),
        "total_variation": losses.total_variation.item(),
        "style_by_layer": {layer: value.item() for layer, value in losses.style_by_layer.items()},
    }


def _curves(run: ImageOptimization, goal: float) -> tuple[list[float], list[float]]:
    """The optimisation's loss by iteration, until it is at `goal` and long enough to be drawn.

    First of the image as it is, second of the image with its values cut to [0, 1], as a file would hold it
    and as Johnson et al. have it after every iteration (section 4.1); a network's result is within the range.
    """
    seen: list[Iteration] = []
    in_range: list[float] = []
    while len(seen) < CURVE or min(iteration.total for iteration in seen) > goal:
        with torch.no_grad():
            in_range.append(run.loss(run.current.parameters.pixels().clamp(0.0, 1.0), run.target).total.item())
        if not run.step(seen.append):
            in_range.pop()
            break
    return [iteration.total for iteration in seen], in_range


def _spread(counts: Sequence[int]) -> Document:
    return {
        "median": float(np.median(counts)),
        "quartiles": np.percentile(counts, [25, 75]).tolist(),
        "minimum": min(counts),
        "maximum": max(counts),
    }


def equivalent_iterations(curve: Sequence[float], goal: float) -> int | None:
    """The first iteration, counted from 1, whose loss is at or below `goal`; None without such an iteration."""
    return next((number for number, loss in enumerate(curve, 1) if loss <= goal), None)


def appearance(stylize: Stylize, photo: ImageData) -> dict[str, float]:
    """What the loss does not see, of 255."""
    images = to_tensor(photo)
    stylized = stylize(images)
    return {
        "warping_error": warping_error(stylize, images),
        "checkerboard": checkerboard_artifact(stylized),
        "border": border_artifact(stylized),
    }


def warping_error(stylize: Stylize, image: Tensor, frames: int = 4) -> float:
    """Root mean square between frames of a pan after the motion is undone, of 255.

    The camera moves by (1, 3) pixels a frame over `image` `[1, 3, H, W]` and sees noise of 2 of 255, so
    the true motion is known and nothing is hidden but at the border, which does not count.
    """
    generator = torch.Generator().manual_seed(0)
    down, right = 1, 3
    height, width = image.shape[2] - down * frames, image.shape[3] - right * frames
    stylized = []
    for frame in range(frames):
        top, left = down * frame, right * frame
        seen = image[:, :, top : top + height, left : left + width]
        stylized.append(stylize(seen + torch.randn(seen.shape, generator=generator) * (2.0 / 255.0)))
    edge = 8
    errors = [
        (before[:, :, down:, right:] - after[:, :, :-down, :-right])[:, :, edge:-edge, edge:-edge].square().mean()
        for before, after in pairwise(stylized)
    ]
    return 255.0 * float(torch.stack(errors).mean().sqrt())


def checkerboard_artifact(images: Tensor) -> float:
    """How much the network's grid of 4 pixels shows, root mean square of 255 (the root of `checkerboard_loss`)."""
    height, width = (side // 4 * 4 for side in images.shape[2:])
    return 255.0 * float(checkerboard_loss(images[:, :, :height, :width]).sqrt())


def border_artifact(images: Tensor) -> float:
    """The mean of the outermost pixels less that of the ring 16 pixels further in, of 255."""
    outer, inner = _ring(images, 0), _ring(images, 16)
    return 255.0 * float(outer.mean() - inner.mean())


def _ring(images: Tensor, distance: int) -> Tensor:
    inside = images[:, :, distance : images.shape[2] - distance, distance : images.shape[3] - distance]
    sides = (inside[:, :, 0], inside[:, :, -1], inside[:, :, :, 0], inside[:, :, :, -1])
    return torch.cat([side.flatten() for side in sides])


def tables(document: Document) -> list[str]:
    """The equivalent iterations, the losses and what the loss does not see, by photograph."""
    model, found, size = document["model"], document["equivalent_iterations"], document["size"]
    photos, in_range = document["photos"], document["equivalent_iterations_in_range"]
    low, high = found["quartiles"]
    head = ["photograph", "equivalent iterations", "in range", "loss", "content", "style", *photos[0]["style_by_layer"]]
    head += ["total variation", "warping error", "checkerboard", "border"]
    body = []
    for row in photos:
        names = ("equivalent_iterations", "equivalent_iterations_in_range")
        counts = [str(row[name] or f"> {row['iterations']}") for name in names]
        losses = [row["loss"], row["content"], row["style"], *row["style_by_layer"].values(), row["total_variation"]]
        artifacts = [f"{row[name]:.2f}" for name in ("warping_error", "checkerboard", "border")]
        body.append([row["photo"], *counts, *(f"{value:.3f}" for value in losses), *artifacts])
    return [
        f"`{model['name']}` ({model['network']}, width {model['width']:g}, {model['parameters']:,} parameters) in the "
        f"style of {model['style']} is equivalent to **{found['median']:g} iterations** of the optimisation at {size}² "
        f"(median of {len(photos)} photographs; half of them {low:.0f}-{high:.0f}, "
        f"all {found['minimum']}-{found['maximum']}), or to {in_range['median']:g} "
        f"({in_range['minimum']}-{in_range['maximum']}) if the optimisation's images, too, are cut to the range of "
        "colours that a file can hold.",
        "",
        *table(head, body),
        "",
        "Losses are weighted as in training; the last three are of 255.",
    ]


def plot(own: Mapping[str, Document], _machine: str) -> Plot | None:
    """Johnson et al.'s figure 5: the optimisation's loss by iteration, and the network's as a line."""
    if "quality" not in own:
        return None
    document = own["quality"]
    rows, found, name = document["photos"], document["equivalent_iterations"]["median"], document["model"]["name"]
    shortest = min(len(row["curve"]) for row in rows)
    curves, in_range = (np.array([row[kind][:shortest] for row in rows]) for kind in ("curve", "curve_in_range"))
    numbers, losses = np.arange(1, shortest + 1), [row["loss"] for row in rows]
    title = f"{len(rows)} photographs at {document['size']}²; shades: all of them"
    with figure("quality", title) as (axes, finish):
        axes.plot(numbers, np.median(curves, axis=0), color="C0", label="optimisation from noise (median)")
        axes.fill_between(numbers, curves.min(axis=0), curves.max(axis=0), color="C0", alpha=0.2, linewidth=0)
        label = "the same, cut to the range (median)"
        axes.plot(numbers, np.median(in_range, axis=0), color="C0", linestyle="--", label=label)
        axes.axhline(float(np.median(losses)), color="C1", label=f"{name}, one pass (median)")
        axes.axhspan(min(losses), max(losses), color="C1", alpha=0.2, linewidth=0)
        axes.axvline(found, color="0.6", linestyle=":", label=f"equivalent to {found:g} iterations (median)")
        axes.set_yscale("log")
        decades(axes.yaxis, lambda value: f"{value:g}")
        axes.set_xlabel("iterations of L-BFGS")
        axes.set_ylabel("loss, weighted as in training")
        axes.legend(fontsize=7)
        of_network = f"of {name}, which is equivalent to {found:g} iterations"
        return finish(f"Loss of the optimisation by iteration at {document['size']}², and {of_network}.")


SUITE = Suite(
    name="quality",
    title="What the network is equivalent to",
    measure=measure,
    tables=tables,
    plots=(plot,),
    plot_beside=True,
    effort=QualityEffort(),
    on_cpu={"full": Cost(270, QualityEffort())},
    on_gpu={"full": Cost(60, QualityEffort())},
    rank=110,
)
