"""Quality against latency: which of several networks of one style image is the best choice for a latency.

The suite measures the equivalent iterations of each network (see `quality`), and its latency exported for this device
and in the engine that serves it; the networks take turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from nst_bench import options
from nst_bench.drawing.plots import decades, figure
from nst_bench.drawing.tables import SUMMARY, columns, short, table
from nst_bench.engines.baseline import Baseline
from nst_bench.equal_loss import Comparison, equivalent_iterations, losses_until
from nst_bench.machine.gpu import torch_device
from nst_bench.measure import Summary, in_turns
from nst_bench.photographs import sample_photograph
from nst_bench.served.exported import default_export_plan
from nst_bench.suite import Context, Document, Effort, Plot, Suite
from nst_core.errors import InputError
from nst_core.images import find_images, sample_photographs
from nst_export.pipeline import export_and_publish
from nst_trainer.checkpoint import Checkpoint, load, parameters
from nst_trainer.vgg import Weights
from nst_trainer.weights import vgg16_weights

LONGEST = 200
"""Maximum iterations of the search for the best network's loss."""

ROUNDS = 21
"""Timed images per network."""

LOSSES = ("loss", "content", "style")


@dataclass(frozen=True)
class FrontierEffort(Effort):
    """Sides in pixels of the images for the losses, and of the images that are timed."""

    quality_size: int = 256
    size: int = 512


def measure(
    context: Context[FrontierEffort],
    *,
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Checkpoints (.pth) of one style image.", metavar="CHECKPOINT")
    ],
    style: Annotated[Path, typer.Option(help="Style image of the checkpoints.")],
    photos: options.Photos = None,
    vgg: options.Vgg = None,
) -> Document:
    """Compare networks of one style by quality and latency.

    Measures losses and equivalent iterations at 256 x 256 pixels, and latency at 512 x 512 pixels.
    """
    contents = find_images(photos) if photos else sample_photographs()
    networks = {path.stem: load(path) for path in checkpoints}
    if len(networks) < len(checkpoints):
        raise InputError("two checkpoints have the same file name; rename one of them")
    figures = _quality(networks, style, contents, vgg16_weights(vgg), context)
    taken = _latencies(checkpoints, context)
    rows: list[Document] = [
        {
            "name": name,
            "network": checkpoint.network.name,
            "arguments": checkpoint.network.arguments,
            "parameters": parameters(checkpoint.network),
            **figures[name],
            "size": context.effort.size,
            "phase": "steady",
            **asdict(taken[name]),
        }
        for name, checkpoint in networks.items()
    ]
    rows.sort(key=lambda row: float(row["median"]))
    for row in rows:
        row["best_for_its_time"] = all(row["loss"] < other["loss"] for other in rows if other["median"] < row["median"])
    photo_names = [photo.name for photo in contents]
    return {"style": style.name, "photos": photo_names, "quality_size": context.effort.quality_size, "rows": rows}


def _quality(
    networks: Mapping[str, Checkpoint],
    style: Path,
    photos: Sequence[Path],
    weights: Weights,
    context: Context[FrontierEffort],
) -> dict[str, dict[str, float]]:
    """Return each network's mean losses, weighted as in the first's training, and median equivalent iterations."""
    size, device = context.effort.quality_size, torch_device(context.device)
    comparisons = {name: Comparison(checkpoint, style) for name, checkpoint in networks.items()}
    first = next(iter(comparisons.values()))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in networks}
    for photo in photos:
        run = first.optimization(photo, size, LONGEST, weights, device)
        losses = {name: comparison.losses(run) for name, comparison in comparisons.items()}
        curve = list(losses_until(run, min(own["loss"] for own in losses.values())))
        for name, own in losses.items():
            count = equivalent_iterations(curve, own["loss"]) or LONGEST
            found[name].append({"equivalent_iterations": count, **{term: own[term] for term in LOSSES}})
        counts = (f"{name} {rows[-1]['equivalent_iterations']}" for name, rows in found.items())
        context.on_progress(f"{photo.name}: {', '.join(counts)}")
    return {
        name: {
            **{term: float(np.mean([row[term] for row in rows])) for term in LOSSES},
            "equivalent_iterations": float(np.median([row["equivalent_iterations"] for row in rows])),
        }
        for name, rows in found.items()
    }


def _latencies(files: Sequence[Path], context: Context[FrontierEffort]) -> dict[str, Summary]:
    """Measure the latency of each network, exported for the device."""
    plan, side = default_export_plan(context.device), context.effort.size
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for file in files:
            export_and_publish(file, file.stem, folder, plan, on_progress=context.on_progress)
        pixels = sample_photograph(side, side)
        works = {file.stem: partial(Baseline(folder / file.stem).stylize, pixels) for file in files}
        return in_turns(works, 0.0, ROUNDS, ROUNDS)


def tables(document: Document) -> list[str]:
    """Render the networks by latency; bold if no faster network has a lower loss."""
    shown = [{**row, "bold": "**" if row["best_for_its_time"] else ""} for row in document["rows"]]
    about = columns(
        "checkpoint         | network                             | parameters     | equivalent iterations",
        "{bold}{name}{bold} | {network}, width {arguments[width]:g} | {parameters:,} | {equivalent_iterations:g}",
    )
    losses = columns("loss | content | style", "{loss:.3f} | {content:.3f} | {style:.3f}")
    return [
        f"{document['style']}: {len(document['photos'])} photographs at {document['quality_size']}² (median equivalent "
        f"iterations, mean losses), milliseconds at {document['rows'][0]['size']}². In bold: networks such that no "
        "faster one has a lower loss.",
        "",
        *table(shown, about | losses | SUMMARY, left=2),
    ]


def plot(own: Mapping[str, Document], machine: str) -> Plot | None:
    """Draw equivalent iterations over latency; in colour the networks that no faster one beats."""
    if "frontier" not in own:
        return None
    document = own["frontier"]
    rows, side = document["rows"], document["rows"][0]["size"]
    with figure("frontier", f"Quality against latency, {document['style']}\n{machine}") as (axes, finish):
        below = False
        for before, row in zip([None, *rows], rows, strict=False):
            place = row["median"], row["equivalent_iterations"]
            axes.plot(*place, "o", color="C0" if row["best_for_its_time"] else "0.6", markersize=4)
            # The names of neighbours alternate above and below, so that they do not overlap.
            near = before and place[0] < 1.4 * before["median"] and abs(place[1] - before["equivalent_iterations"]) < 2
            below = bool(near) and not below
            axes.annotate(row["name"], place, (4, -9 if below else 4), textcoords="offset points", fontsize=7)
        equivalent = f"equivalent iterations at {document['quality_size']}²"
        axes.set(xscale="log", xlabel=f"ms per image at {side}² (log scale)", ylabel=equivalent)
        decades(axes.xaxis, "{:g}".format)
        axes.margins(x=0.15, y=0.1)
        points = (f"{row['name']} {row['equivalent_iterations']:g} in {short(row['median'])} ms" for row in rows)
        return finish(f"Equivalent iterations over latency on {machine}: {', '.join(points)}.")


SUITE = Suite(
    name="frontier",
    title="Quality against latency",
    measure=measure,
    tables=tables,
    plots=(plot,),
    plot_beside=True,
    effort=FrontierEffort(),
)
