"""How many iterations of the optimisation a trained network is equivalent to: those that reach its loss.

As in figure 5 of Johnson et al. 2016. And what the loss does not see: whether a moving image flickers, whether the
network's grid shows (the checkerboard artifact), and whether its border is brighter or darker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from nst_bench import options
from nst_bench.drawing.plots import decades, figure
from nst_bench.drawing.tables import Cell, columns, model_name, table
from nst_bench.equal_loss import Comparison, Stylize, equivalent_iterations, losses_until
from nst_bench.machine.gpu import torch_device
from nst_bench.served.resources import describe_network
from nst_bench.suite import Context, Cost, Document, Effort, Plot, Suite
from nst_core.images import ImageData, find_images, fit, open_image, sample_photographs
from nst_trainer.checkpoint import load
from nst_trainer.images import to_tensor
from nst_trainer.losses import checkerboard_loss
from nst_trainer.optimization.gatys import ImageOptimization
from nst_trainer.weights import vgg16_weights

CURVE = 120
"""Iterations of the optimisation that are drawn for every photograph."""

LONGEST = 500
"""Iterations after which the search for those that are equivalent ends."""


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
    trained, weights, device = load(checkpoint), vgg16_weights(vgg), torch_device(context.device)
    comparison, size = Comparison(trained, style), 512 if full else context.effort.size
    rows = []
    for photo in find_images(photos) if photos else sample_photographs():
        run = comparison.optimization(photo, size, LONGEST, weights, device)
        content = fit(open_image(photo), size, size)
        row = {"photo": photo.name, **comparison.losses(run), **appearance(comparison.stylize, content)}
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


def _curves(run: ImageOptimization, goal: float) -> tuple[list[float], list[float]]:
    """The optimisation's loss by iteration, until it is at `goal` and long enough to be drawn.

    First of the image as it is, second of the image with its values cut to [0, 1], as a file would hold it
    and as Johnson et al. have it after every iteration (section 4.1); a network's result is within the range.
    """

    @torch.no_grad()
    def in_range() -> float:
        return run.loss(run.current.parameters.pixels().clamp(0.0, 1.0), run.target).total.item()

    cut = [in_range()]
    curve = []
    for loss in losses_until(run, goal, CURVE):
        curve.append(loss)
        cut.append(in_range())
    return curve, cut[:-1]


def _spread(counts: Sequence[int]) -> Document:
    return {
        "median": float(np.median(counts)),
        "quartiles": np.percentile(counts, [25, 75]).tolist(),
        "minimum": min(counts),
        "maximum": max(counts),
    }


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
    about: dict[str, Cell] = {
        "photograph": "{photo}",
        "equivalent iterations": lambda row: str(row["equivalent_iterations"] or f"> {row['iterations']}"),
        "in range": lambda row: str(row["equivalent_iterations_in_range"] or f"> {row['iterations']}"),
        **columns("loss | content | style", "{loss:.3f} | {content:.3f} | {style:.3f}"),
        **{layer: f"{{style_by_layer[{layer}]:.3f}}" for layer in photos[0]["style_by_layer"]},
    }
    about |= columns(
        "total variation       | warping error       | checkerboard       | border",
        "{total_variation:.3f} | {warping_error:.2f} | {checkerboard:.2f} | {border:.2f}",
    )
    return [
        f"{model_name(model)} in the "
        f"style of {model['style']} is equivalent to **{found['median']:g} iterations** of the optimisation at {size}² "
        f"(median of {len(photos)} photographs; half of them {low:.0f}-{high:.0f}, "
        f"all {found['minimum']}-{found['maximum']}), or to {in_range['median']:g} "
        f"({in_range['minimum']}-{in_range['maximum']}) if the optimisation's images, too, are cut to the range of "
        "colours that a file can hold.",
        "",
        *table(photos, about),
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
        axes.set(yscale="log", xlabel="iterations of L-BFGS", ylabel="loss, weighted as in training")
        decades(axes.yaxis, "{:g}".format)
        axes.legend()
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
