"""An optimisation as a person has it: files in, a file out, stopped and continued at will."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nst_core.errors import InputError
from nst_core.files import atomic_write
from nst_core.images import image_format, open_image, save_image
from nst_trainer.checkpoint import load, read_plain_data, save_plain_data
from nst_trainer.images import open_style, to_image, to_tensor
from nst_trainer.optimization.gatys import ImageOptimization, Iteration, OptimizationError
from nst_trainer.optimization.settings import INITS, OptimizationSettings
from nst_trainer.signals import AtOnce
from nst_trainer.weights import Weights

CPU = torch.device("cpu")

STATE = "nst-optimization/2"
"""The schema of `<output>.resume`: 1 had no name, and the state of PyTorch's L-BFGS."""

BYTES_FIXED = 500 * 2**20
BYTES_KEPT, BYTES_RECOMPUTED = 2800, 1600
"""Memory of an optimisation, fixed and a pixel: the peaks at 512 and 768 pixels on a CPU (dev/LOG.md)."""
BYTES_PAIR = 2 * 3 * 4
"""Of L-BFGS's history, a pair and pixel: two FP32 values for each of three channels."""


def paint(
    content: Path | None,
    styles: Sequence[Path],
    output: Path,
    settings: OptimizationSettings,
    weights: Weights,
    *,
    shares: Sequence[float] | None = None,
    masks: tuple[Path, Sequence[Path]] | None = None,
    shape: tuple[int, int] | None = None,
    tileable: bool = False,
    save_every: int = 0,
    trace: Path | None = None,
    resume: bool = False,
    device: torch.device = CPU,
    on_iteration: Callable[[Iteration], None] = lambda iteration: None,
) -> None:
    """Optimise a picture on `device` and write it to `output`; see `nst_trainer.optimization.gatys.optimize`.

    `masks` are pictures of flat colours, one of the content and one of each style: a region of the
    content takes the style of the region of the same colour. Every `save_every` iterations (0:
    never) the picture so far is written. On Ctrl-C it is written too, and beside it
    `<output>.resume`, from which `resume` continues exactly; a second Ctrl-C writes nothing. `trace` gets losses over
    iterations and seconds as JSON, and a plot beside it. Raises `InputError` for unusable files, and
    `OptimizationError` after the last good picture was written.
    """
    image_format(output)
    state_file = output.with_name(output.name + ".resume")
    pictures = None if content is None else to_tensor(open_image(content))
    proportions = (shape or (1, 1)) if pictures is None else (pictures.shape[2], pictures.shape[3])
    check_memory(settings, proportions, device)
    own_start = settings.init not in INITS
    run = ImageOptimization(
        pictures,
        [to_tensor(open_style(style)) for style in styles],
        settings,
        weights,
        shares=shares,
        guides=None if masks is None else _regions(*masks),
        start=to_tensor(open_image(Path(settings.init))) if own_start else None,
        shape=shape,
        tileable=tileable,
        device=device,
    )
    points: list[dict[str, Any]] = []
    if resume:
        points = _continue(run, state_file, settings)
    elif state_file.exists():
        raise InputError(f"{state_file} is an unfinished picture: go on with --resume, or remove it")

    def watch(iteration: Iteration) -> None:
        points.append(_point(iteration))
        if save_every and iteration.number % save_every == 0:
            save_image(to_image(run.picture()), output)
        on_iteration(iteration)

    try:
        while run.step(watch):
            pass
    except AtOnce:
        raise
    except KeyboardInterrupt:
        document = {"schema": STATE, "settings": asdict(settings), "run": run.state(), "points": points}
        save_plain_data(document, state_file)
        save_image(to_image(run.picture()), output)
        raise
    except OptimizationError as error:
        save_image(to_image(error.picture), output)
        raise
    finally:
        if trace and points:
            _write_trace(points, trace)
    save_image(to_image(run.picture()), output)
    state_file.unlink(missing_ok=True)


@torch.no_grad()
def sample_texture(
    checkpoint: Path, output: Path, shape: tuple[int, int], seed: int, device: torch.device = CPU
) -> None:
    """Write a texture of `shape` (height, width) that a trained texture network makes of noise number `seed`.

    Opposite edges are neighbours where height and width are multiples of 16. Raises `InputError` for
    a checkpoint of another kind.
    """
    image_format(output)
    network = load(checkpoint).network.to(device)
    if not network.arguments.get("texture"):
        raise InputError(f"{checkpoint} paints photographs; a texture network is trained with --arch ulyanov --texture")
    height, width = (max(network.min_side, -(-side // network.multiple) * network.multiple) for side in shape)
    empty = torch.zeros(1, 3, height, width, device=device)
    texture = network(empty, None, network.draw_noise(empty, torch.Generator().manual_seed(seed)))
    save_image(to_image(texture[:, :, : shape[0], : shape[1]]), output)


def check_memory(settings: OptimizationSettings, shape: tuple[int, int], device: torch.device = CPU) -> None:
    """Raise `InputError`, naming the largest size that fits, when the memory of `device` would not suffice.

    `shape` gives the proportions (height, width). Where the system does not tell what is free
    (it is no Linux), nothing is refused.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory()
    if free is None:
        return
    ratio = min(shape) / max(shape)
    each = BYTES_RECOMPUTED if settings.low_memory else BYTES_KEPT
    if settings.optimizer == "lbfgs":
        each += BYTES_PAIR * min(settings.history, settings.iterations)
    needed = BYTES_FIXED + each * settings.size**2 * ratio
    if needed > free:
        largest = int(max(free - BYTES_FIXED, 0) / each / ratio) ** 0.5 // 16 * 16
        also = "" if settings.low_memory else ", or go beyond with --low-memory"
        raise InputError(
            f"{settings.size} pixels need about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free: "
            f"the largest --size that fits is {largest:.0f}{also}"
        )


def _free_memory() -> int | None:
    """Bytes that can be had without swapping, from /proc/meminfo."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def _continue(run: ImageOptimization, file: Path, settings: OptimizationSettings) -> list[dict[str, Any]]:
    if not file.is_file():
        raise InputError(f"{file}: nothing to resume")
    document = read_plain_data(file)
    if document.get("schema") != STATE:
        raise InputError(f"{file} was written by another version of nst, which alone can go on with it; remove it")
    now, before = asdict(settings), document["settings"]
    if changed := [name for name in now if now[name] != before.get(name)]:
        differences = ", ".join(f"{name} was {before.get(name)}, is {now[name]}" for name in changed)
        raise InputError(f"{file} was begun with other settings: {differences}")
    run.restore(document["run"])
    points: list[dict[str, Any]] = document["points"]
    return points


def _point(iteration: Iteration) -> dict[str, Any]:
    return {
        "iteration": iteration.number,
        "seconds": round(iteration.seconds, 4),
        "height": iteration.size[0],
        "width": iteration.size[1],
        "total": iteration.total,
        "content": iteration.content,
        "style": iteration.style,
        "total_variation": iteration.total_variation,
    }


def _regions(content: Path, styles: Sequence[Path]) -> tuple[Tensor, list[Tensor]]:
    """Guides `[K, 1, H, W]` of 0 and 1 from pictures of flat colours, the colours in one order."""
    pixels = [open_image(path).pixels.astype(np.int32) @ np.array([65536, 256, 1]) for path in (content, *styles)]
    colors = np.unique(pixels[0])
    if len(colors) > 16:
        raise InputError(f"{content}: {len(colors)} colours; a mask has one flat colour a region, 16 at most (no JPEG)")
    for path, one in zip(styles, pixels[1:], strict=True):
        if missing := set(colors.tolist()) - set(np.unique(one).tolist()):
            names = ", ".join(f"#{color:06x}" for color in sorted(missing))
            raise InputError(f"{path}: lacks the colour {names} that {content} has")
    guides = [torch.from_numpy((one[None] == colors[:, None, None])[:, None].astype(np.float32)) for one in pixels]
    return guides[0], guides[1:]


def _write_trace(points: list[dict[str, Any]], path: Path) -> None:
    """The JSON, and a PNG of the same name with the losses over seconds."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where no folder keeps its caches it warns, at length
    from matplotlib.figure import Figure

    with atomic_write(path) as beside:
        beside.write_text(json.dumps({"schema": "nst-trace/1", "iterations": points}, indent=1) + "\n")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name in ("total", "style", "content", "total_variation"):
        axes.plot([one["seconds"] for one in points], [one[name] for one in points], label=name.replace("_", " "))
    for before, after in pairwise(points):
        if before["width"] != after["width"]:
            axes.axvline(after["seconds"], color="0.85", zorder=0)
    axes.set_yscale("log")
    axes.set_xlabel("seconds (grey lines: the next larger size)")
    axes.set_ylabel("loss, weighted")
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path.with_suffix(".png")) as beside:
        figure.savefig(beside, dpi=120)
