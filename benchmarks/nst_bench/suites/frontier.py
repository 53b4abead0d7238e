"""Quality over time: which of several networks for one painting gives the most for its latency.

What each is worth, all against the same optimisation (see `quality`), and how long a picture takes in the form in which
it is served: exported for this device, in the engine that serves it, the networks taking turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nst_bench.engines.bare import BareModel
from nst_bench.machine.cuda import torch_device
from nst_bench.machine.description import document_header
from nst_bench.measure import REST, interleaved, summarize
from nst_bench.photographs import sample_photograph
from nst_bench.served.export import default_export_plan
from nst_bench.suites.quality import baseline, iterations_worth, network_losses, painter, painting_of
from nst_core.devices import Device
from nst_core.errors import InputError
from nst_core.images import fit, open_image
from nst_export.pipeline import export_and_publish
from nst_trainer.checkpoint import Checkpoint, load, parameters
from nst_trainer.images import to_tensor
from nst_trainer.optimization.gatys import ImageOptimization, Iteration
from nst_trainer.vgg import Weights

SCHEMA = "nst-bench-frontier/1"

LONGEST = 200
"""Iterations of the optimisation where the search for the best network's worth ends."""

ROUNDS = 21
"""Pictures of each network that are timed."""


def measure(
    files: Sequence[Path],
    style: Path,
    photos: Sequence[Path],
    weights: Weights,
    device: Device,
    *,
    size: int = 256,
    side: int = 512,
    on_progress: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """The checkpoints `files` of the painting `style`: losses on `photos` at `size`^2, milliseconds at `side`^2.

    Losses have the weights of the first one's training. The optimisation runs on `device`, and so do the networks.
    Raises `InputError` for two of one name, for a texture network, and for many styles without this one.
    """
    networks = {path.stem: load(path) for path in files}
    if len(networks) < len(files):
        raise InputError("two checkpoints have the same name: rename one")
    document = document_header(SCHEMA)
    figures = _quality(networks, style, photos, weights, size, torch_device(device), on_progress)
    taken = _latencies(files, side, device, on_progress)
    rows = [
        {
            "name": name,
            "network": one.network.name,
            "arguments": one.network.arguments,
            "parameters": parameters(one.network),
            **figures[name],
            "size": side,
            "phase": "steady",
            **asdict(summarize(taken[name])),
        }
        for name, one in networks.items()
    ]
    rows.sort(key=lambda row: float(row["median"]))
    for row in rows:
        row["best_for_its_time"] = all(row["loss"] < other["loss"] for other in rows if other["median"] < row["median"])
    about = {"style": style.name, "photos": [photo.name for photo in photos], "quality_size": size}
    return {**document, **about, "rows": rows}


def _quality(
    networks: Mapping[str, Checkpoint],
    style: Path,
    photos: Sequence[Path],
    weights: Weights,
    size: int,
    device: torch.device,
    on_progress: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Of each network the mean losses and the median worth."""
    paints = {name: painter(one, style.stem) for name, one in networks.items()}
    first = next(iter(networks.values()))
    painting = painting_of(first, style)
    settings = baseline(first, size, LONGEST, painting)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in networks}
    for photo in photos:
        run = ImageOptimization(
            to_tensor(fit(open_image(photo), size, size)), [painting], settings, weights, device=device
        )
        losses = {name: network_losses(run, paint) for name, paint in paints.items()}
        curve = _curve(run, min(one["loss"] for one in losses.values()))
        for name, one in losses.items():
            worth = iterations_worth(curve, one["loss"]) or LONGEST
            found[name].append({"worth": worth, **{term: one[term] for term in ("loss", "content", "style")}})
        on_progress(f"{photo.name}: " + ", ".join(f"{name} {rows[-1]['worth']}" for name, rows in found.items()))
    return {
        name: {
            **{term: float(np.mean([row[term] for row in rows])) for term in ("loss", "content", "style")},
            "worth": float(np.median([row["worth"] for row in rows])),
        }
        for name, rows in found.items()
    }


def _curve(run: ImageOptimization, goal: float) -> list[float]:
    """The optimisation's loss by iteration, until it is at `goal`."""
    seen: list[Iteration] = []
    while len(seen) < LONGEST and (not seen or min(one.total for one in seen) > goal):
        if not run.step(seen.append):
            break
    return [one.total for one in seen]


def _latencies(
    files: Sequence[Path], side: int, device: Device, on_progress: Callable[[str], None]
) -> dict[str, list[float]]:
    """Seconds of a picture of `side`^2 through each, as `nst-export` leaves it for the device."""
    plan = default_export_plan(device)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for file in files:
            export_and_publish(file, file.stem, folder, plan, on_progress=on_progress)
        pixels = sample_photograph(side, side)
        works = {file.stem: partial(BareModel(folder / file.stem).stylize, pixels) for file in files}
        for work in works.values():
            work()
        return interleaved(works, ROUNDS, rest=REST)
