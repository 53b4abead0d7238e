"""Equivalent iterations: how many iterations of the optimisation reach a trained network's loss.

This is figure 5 of Johnson et al. 2016. The suite also measures what the loss does not: temporal consistency, the
checkerboard artifact, and the border artifact.
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
from nst_core.images import find_images, fit, open_image, sample_photographs
from nst_trainer.checkpoint import load
from nst_trainer.images import to_tensor
from nst_trainer.losses import checkerboard_loss
from nst_trainer.optimization.gatys import ImageOptimization
from nst_trainer.weights import vgg16_weights

CURVE = 120
"""Iterations of the optimisation that are plotted for every photograph."""

LONGEST = 500
"""Maximum iterations of the search for the network's loss."""


@dataclass(frozen=True)
class QualityEffort(Effort):
    """The side of the images in pixels."""

    size: int = 256


def measure(
    context: Context[QualityEffort],
    *,
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint (.pth).", metavar="CHECKPOINT")],
    style: Annotated[Path, typer.Option(help="Style image of the checkpoint.")],
    photos: options.Photos = None,
    full: Annotated[bool, typer.Option("--full", help="Measure at 512 x 512 instead of 256 x 256 pixels.")] = False,
    vgg: options.Vgg = None,
) -> Document:
    """Measure a network's equivalent iterations.

    These are the iterations of Gatys' optimisation that reach the network's loss on held-out photographs. Temporal
    consistency, checkerboard artifact and border artifact are measured as well.
    """
    trained, weights, device = load(checkpoint), vgg16_weights(vgg), torch_device(context.device)
    comparison, size = Comparison(trained, style), 512 if full else context.effort.size
    found_photos = find_images(photos) if photos else sample_photographs()
    contents = [to_tensor(fit(open_image(photo), size, size)) for photo in found_photos]
    rows = []
    for photo, content in zip(found_photos, contents, strict=True):
        run = comparison.optimization(photo, size, LONGEST, weights, device)
        row = {"photo": photo.name, **comparison.losses(run), **appearance(comparison.stylize, content)}
        curve, in_range = _curves(run, row["loss"])
        row |= {
            "equivalent_iterations": equivalent_iterations(curve, row["loss"]),
            "equivalent_iterations_in_range": equivalent_iterations(in_range, row["loss"]),
        }
        rows.append(row | {"curve": curve[:CURVE], "curve_in_range": in_range[:CURVE], "iterations": len(curve)})
        found = row["equivalent_iterations"] or f"more than {LONGEST}"
        context.on_progress(f"{photo.name}: loss {row['loss']:.3f}, {found} equivalent iterations")
    in_range_found = [row["equivalent_iterations_in_range"] or row["iterations"] for row in rows]
    return {
        "model": {"style": style.name, **describe_network(trained, checkpoint.stem)},
        "size": size,
        "equivalent_iterations": _spread([row["equivalent_iterations"] or LONGEST for row in rows]),
        "equivalent_iterations_in_range": _spread(in_range_found),
        "border": border_artifact(comparison.stylize, contents),
        "photos": rows,
    }


def _curves(run: ImageOptimization, goal: float) -> tuple[list[float], list[float]]:
    """Return the optimisation's loss by iteration until it is at `goal`, and at least for `CURVE` iterations.

    The first curve is of the image as it is, the second of the image clipped to [0, 1], as a file would contain it and
    as Johnson et al. have it after every iteration (section 4.1); a network's result is within the range.
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


def appearance(stylize: Stylize, content: Tensor) -> dict[str, float]:
    """Measure artifacts that the loss of a photograph `[1, 3, H, W]` does not, of 255."""
    return {
        "warping_error": warping_error(stylize, content),
        "checkerboard": checkerboard_artifact(stylize(content)),
    }


def warping_error(stylize: Stylize, image: Tensor, frames: int = 4) -> float:
    """Return the root mean square difference of motion-compensated frames of a pan, of 255.

    The camera moves by (1, 3) pixels per frame over `image` `[1, 3, H, W]`, with noise of 2 of 255, so the true motion
    is known and nothing is occluded except at the border, which is left out.
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
    """Return the checkerboard artifact: the square root of `checkerboard_loss`, of 255."""
    height, width = (side // 4 * 4 for side in images.shape[2:])
    return 255.0 * float(checkerboard_loss(images[:, :, :height, :width]).sqrt())


def border_artifact(stylize: Stylize, photos: Sequence[Tensor]) -> float:
    """Return the border artifact, of 255: how much a style brightens or darkens the strip along one of the sides.

    A network learns a style image's frame, margin or dark edge as a line or band around every image. A strip of 1, 8 or
    16 pixels is compared with the next as wide, and with the same difference in the photograph `[1, 3, H, W]`; the
    figure is the largest, over sides and widths, of the means over `photos`. Each is mirrored both ways, so that its
    own contrasts cancel out.
    """
    views = [photo.flip(axes) for photo in photos for axes in ((), (2,), (3,), (2, 3))]
    changes = torch.stack([_strips(stylize(view)) - _strips(view) for view in views])
    return 255.0 * float(changes.mean(dim=0).abs().max())


def _strips(image: Tensor) -> Tensor:
    """Return how much brighter strips along the sides are than the next as wide, by side and width."""
    across = image.transpose(2, 3)
    sides = [side.mean(dim=(0, 1, 3)) for side in (image, image.flip(2), across, across.flip(2))]
    return torch.stack([rows[:wide].mean() - rows[wide : 2 * wide].mean() for rows in sides for wide in (1, 8, 16)])


def tables(document: Document) -> list[str]:
    """Render equivalent iterations, losses and artifacts by photograph."""
    model, found, size = document["model"], document["equivalent_iterations"], document["size"]
    photos, in_range = document["photos"], document["equivalent_iterations_in_range"]
    low, high = found["quartiles"]
    about: dict[str, Cell] = {
        "photograph": "{photo}",
        "equivalent iterations": lambda row: str(row["equivalent_iterations"] or f"> {row['iterations']}"),
        "clipped": lambda row: str(row["equivalent_iterations_in_range"] or f"> {row['iterations']}"),
        **columns("loss | content | style", "{loss:.3f} | {content:.3f} | {style:.3f}"),
        **{layer: f"{{style_by_layer[{layer}]:.3f}}" for layer in photos[0]["style_by_layer"]},
    }
    about |= columns(
        "total variation       | warping error       | checkerboard",
        "{total_variation:.3f} | {warping_error:.2f} | {checkerboard:.2f}",
    )
    return [
        f"{model_name(model)} in the "
        f"style of {model['style']}: **{found['median']:g} equivalent iterations** of the optimisation at {size}² "
        f"(median of {len(photos)} photographs; interquartile range {low:.0f}-{high:.0f}, "
        f"range {found['minimum']}-{found['maximum']}), or {in_range['median']:g} "
        f"({in_range['minimum']}-{in_range['maximum']}) if the optimisation's images are clipped to [0, 1], too.",
        "",
        *table(photos, about),
        "",
        "Losses are weighted as in training; warping error and checkerboard are of 255." + _about_border(document),
    ]


def _about_border(document: Document) -> str:
    if "border" not in document:  # of an earlier version
        return ""
    return f" Along its sides an image becomes brighter or darker by at most {document['border']:.1f} of 255."


def plot(own: Mapping[str, Document], _machine: str) -> Plot | None:
    """Draw figure 5 of Johnson et al. 2016: the optimisation's loss by iteration, and the network's as a line."""
    if "quality" not in own:
        return None
    document = own["quality"]
    rows, found, name = document["photos"], document["equivalent_iterations"]["median"], document["model"]["name"]
    shortest = min(len(row["curve"]) for row in rows)
    curves, in_range = (np.array([row[kind][:shortest] for row in rows]) for kind in ("curve", "curve_in_range"))
    numbers, losses = np.arange(1, shortest + 1), [row["loss"] for row in rows]
    title = f"Equivalent iterations, {len(rows)} photographs at {document['size']}² (shaded: range)"
    with figure("quality", title) as (axes, finish):
        axes.plot(numbers, np.median(curves, axis=0), color="C0", label="Gatys' optimisation (median)")
        axes.fill_between(numbers, curves.min(axis=0), curves.max(axis=0), color="C0", alpha=0.2, linewidth=0)
        label = "Gatys' optimisation, clipped to [0, 1] (median)"
        axes.plot(numbers, np.median(in_range, axis=0), color="C0", linestyle="--", label=label)
        axes.axhline(float(np.median(losses)), color="C1", label=f"{name} (median)")
        axes.axhspan(min(losses), max(losses), color="C1", alpha=0.2, linewidth=0)
        axes.axvline(found, color="0.6", linestyle=":", label=f"{found:g} equivalent iterations (median)")
        axes.set(yscale="log", xlabel="iterations of L-BFGS", ylabel="loss, weighted as in training (log scale)")
        decades(axes.yaxis, "{:g}".format)
        axes.legend()
        of_network = f"the loss of {name}: {found:g} equivalent iterations"
        return finish(f"Loss of Gatys' optimisation by iteration at {document['size']}², and {of_network}.")


SUITE = Suite(
    name="quality",
    title="Equivalent iterations",
    measure=measure,
    tables=tables,
    plots=(plot,),
    plot_beside=True,
    effort=QualityEffort(),
    on_cpu={"full": Cost(270, QualityEffort())},
    on_gpu={"full": Cost(60, QualityEffort())},
    rank=110,
)
