"""Optimisations that read and write files, and can be stopped and resumed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nst_core.errors import InputError
from nst_core.images import image_format, open_image, save_image
from nst_trainer.checkpoint import read_plain_data, save_plain_data
from nst_trainer.images import open_style, to_image, to_tensor
from nst_trainer.optimization.gatys import ImageOptimization, Iteration, OptimizationError
from nst_trainer.optimization.masks import read_masks
from nst_trainer.optimization.memory import check_memory
from nst_trainer.optimization.settings import INITS, OptimizationSettings
from nst_trainer.optimization.trace import trace_point, write_trace
from nst_trainer.signals import SecondInterrupt
from nst_trainer.vgg import Weights

log = logging.getLogger(__name__)

CPU = torch.device("cpu")

STATE_SCHEMA = "nst-optimization/2"
"""Schema of `<output>.resume`; version 1 had no name, and the state of PyTorch's L-BFGS."""


def optimize_files(
    content: Path | None,
    styles: Sequence[Path],
    output: Path,
    settings: OptimizationSettings,
    weights: Weights,
    *,
    style_weights: Sequence[float] | None = None,
    masks: tuple[Path, Sequence[Path]] | None = None,
    shape: tuple[int, int] | None = None,
    tileable: bool = False,
    save_every: int = 0,
    trace: Path | None = None,
    resume: bool = False,
    device: torch.device = CPU,
    on_iteration: Callable[[Iteration], None] = lambda iteration: None,
) -> None:
    """Optimise an image on `device` and write it to `output`; see `nst_trainer.optimization.gatys.optimize`.

    `masks` are images of flat colours, for the content and for each style: a region of the content takes the style of
    the region of the same colour. `save_every` writes the image every so many iterations (0: never). Ctrl-C writes it
    as well, and `<output>.resume` beside it, from which `resume` continues exactly; a second Ctrl-C writes nothing.
    `trace` gets the losses over iterations and seconds as JSON, and a plot beside it. Raises `InputError` for unusable
    files, and `OptimizationError` after writing the last good image.
    """
    image_format(output)
    state_file = output.with_name(output.name + ".resume")
    content_image = None if content is None else to_tensor(open_image(content))
    proportions = shape or (1, 1)
    if content_image is not None:
        proportions = content_image.shape[2], content_image.shape[3]
    check_memory(settings, proportions, device)
    own_start = settings.init not in INITS
    optimization = ImageOptimization(
        content_image,
        [to_tensor(open_style(style)) for style in styles],
        settings,
        weights,
        style_weights=style_weights,
        guides=None if masks is None else read_masks(*masks),
        start=to_tensor(open_image(Path(settings.init))) if own_start else None,
        shape=shape,
        tileable=tileable,
        device=device,
    )
    points: list[dict[str, Any]] = []
    if resume:
        points = _continue(optimization, state_file, settings)
    elif state_file.exists():
        raise InputError(f"{state_file} is an unfinished image; continue it with --resume, or remove it")

    def watch(iteration: Iteration) -> None:
        points.append(trace_point(iteration))
        if save_every and iteration.number % save_every == 0:
            save_image(to_image(optimization.image()), output)
        on_iteration(iteration)

    try:
        while optimization.step(watch):
            pass
    except SecondInterrupt:
        raise
    except KeyboardInterrupt:
        document = {"schema": STATE_SCHEMA, "settings": asdict(settings), "run": optimization.state(), "points": points}
        save_plain_data(document, state_file)
        save_image(to_image(optimization.image()), output)
        raise
    except OptimizationError as error:
        save_image(to_image(error.image), output)
        raise
    finally:
        if trace and points:
            write_trace(points, trace)
    save_image(to_image(optimization.image()), output)
    state_file.unlink(missing_ok=True)


def _continue(optimization: ImageOptimization, file: Path, settings: OptimizationSettings) -> list[dict[str, Any]]:
    if not file.is_file():
        raise InputError(f"{file}: no such file, so there is nothing to resume; start without --resume")
    document = read_plain_data(file)
    if document.get("schema") != STATE_SCHEMA:
        raise InputError(f"{file} was written by another version of nst; resume it with that version, or remove it")
    now, before = asdict(settings), document["settings"]
    if changed := [name for name in now if now[name] != before.get(name)]:
        differences = ", ".join(f"{name} was {before.get(name)}, is {now[name]}" for name in changed)
        raise InputError(
            f"{file} was started with other settings ({differences}); repeat its command with --resume, or remove it"
        )
    optimization.restore(document["run"])
    points: list[dict[str, Any]] = document["points"]
    log.info("resuming %s after iteration %d", file, len(points))
    return points
