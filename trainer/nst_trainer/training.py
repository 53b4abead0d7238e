"""Training a feed-forward network for one style (Johnson, Alahi and Fei-Fei 2016, section 3).

Each iteration stylises a batch of photographs, measures content, style and total variation with
the loss network, and takes one step of Adam.
"""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nst_core.errors import InputError, NstError, PictureError
from nst_core.files import written_whole
from nst_core.images import Picture, find_pictures, fitted, open_picture, save_picture, side_by_side
from nst_trainer import checkpoint
from nst_trainer.losses import PerceptualLoss, lattice
from nst_trainer.networks import ARCHITECTURES, Johnson
from nst_trainer.photos import Photos, to_picture, to_tensor
from nst_trainer.settings import TrainingSettings
from nst_trainer.vgg import Vgg16

LATTICE_WEIGHT = 1000.0
"""At this weight a lattice of 3.6 levels of 255, as training without it gave, counts 0.2 (dev/LOG.md)."""


class TrainingError(NstError):
    """The training cannot go on."""


@dataclass
class Progress:
    """What a run tells after every iteration. Losses are weighted; a loss that is printed is a mean."""

    iteration: int
    iterations: int
    images_per_second: float
    content: float
    style: float
    total_variation: float
    skipped: int


@dataclass
class _Run:
    """The part of a training that a resumed one continues from."""

    settings: TrainingSettings
    network: Johnson
    optimizer: torch.optim.Adam
    iteration: int = 0
    averages: dict[str, float] = field(default_factory=dict)


def train(
    style: Path,
    photos: Path,
    output: Path,
    vgg: Vgg16,
    settings: TrainingSettings,
    *,
    name: str | None = None,
    workers: int = 2,
    resume: bool = False,
    start: Path | None = None,
    preview: Path | None = None,
    every: int = 100,
    on_iteration: Callable[[Progress], None] = lambda progress: None,
) -> checkpoint.Checkpoint:
    """Train one style; write the checkpoint to `output` and return it.

    Every `every` iterations, at the end and on Ctrl-C three files are written whole: `output`,
    usable at once; `<output>.resume`, from which `resume=True` continues exactly; and
    `<output stem>-preview.png`, the photograph `preview` (default: the first of the folder)
    before and after. `<output>.resume` is removed at the end. `start` is a checkpoint whose weights
    it begins with, of the same width.
    Raises `InputError` for unusable input, and `TrainingError` for a loss that is not finite: the
    files on disk are then those of the last good checkpoint.
    """
    state = output.with_name(output.name + ".resume")
    if state.exists() and not resume:
        raise InputError(f"{state} is an unfinished training: go on with --resume, or remove it")
    found = find_pictures(photos)
    shown = _preview_photo([preview] if preview else found)
    loss = PerceptualLoss(
        vgg,
        to_tensor(open_picture(style, max_side=settings.style_size)),
        settings.loss_weights,
    )
    run = _resumed(state, settings) if resume else _fresh(settings, start)
    reader = Photos(found, batch=settings.batch, crop_of=settings.crop_at, seed=settings.seed, workers=workers)
    history = _history(style, len(found), settings) | ({"from": start.name} if start else {})
    _save_state(run, state)  # now, so that a folder that cannot be written is not found out after an hour

    def write() -> checkpoint.Checkpoint:
        _save_state(run, state)
        history.update(iterations_done=run.iteration, skipped=len(reader.broken))
        result = checkpoint.Checkpoint(run.network, (name or output.stem,), dict(history), dict(run.averages))
        checkpoint.save(result, output)
        _write_preview(run.network, shown, output.with_name(f"{output.stem}-preview.png"))
        return result

    try:
        for pictures in reader.batches(run.iteration, settings.iterations):
            on_iteration(_step(run, loss, pictures, len(reader.broken)))
            if run.iteration % every == 0:
                write()
    finally:
        # Also after Ctrl-C; a loss that is not finite stopped before it touched the network.
        result = write()
    state.unlink()
    return result


def _fresh(settings: TrainingSettings, start: Path | None = None) -> _Run:
    torch.manual_seed(settings.seed)
    network = ARCHITECTURES["johnson"](width=settings.width)
    if start:
        other = checkpoint.load(start).network
        if other.arguments != network.arguments:
            raise InputError(f"{start} has {other.arguments}, this training {network.arguments}: give the same --width")
        network.load_state_dict(other.state_dict())
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _Run(settings, network, torch.optim.Adam(network.parameters(), settings.learning_rate))


def _resumed(state: Path, settings: TrainingSettings) -> _Run:
    if not state.is_file():
        raise InputError(f"{state}: nothing to resume")
    document = checkpoint.read_plain_data(state)
    before = document["settings"]
    now = asdict(settings)
    if changed := [key for key in now if now[key] != before.get(key)]:
        differences = ", ".join(f"{key} was {before.get(key)}, is {now[key]}" for key in changed)
        raise InputError(f"{state} was begun with other settings: {differences}")
    run = _fresh(settings)
    run.network.load_state_dict(document["network"])
    run.optimizer.load_state_dict(document["optimizer"])
    run.iteration, run.averages = document["iteration"], document["averages"]
    return run


def _save_state(run: _Run, path: Path) -> None:
    document = {
        "settings": asdict(run.settings),
        "network": run.network.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "iteration": run.iteration,
        "averages": run.averages,
    }
    with written_whole(path) as beside:
        torch.save(document, beside)


def _step(run: _Run, loss: PerceptualLoss, pictures: Tensor, skipped: int) -> Progress:
    """One iteration; raises `TrainingError` before a loss that is not finite reaches the weights."""
    started = time.perf_counter()
    for group in run.optimizer.param_groups:
        group["lr"] = run.settings.learning_rate_at(run.iteration)
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    run.network.train()
    painted = run.network(pictures)
    losses = loss(painted, loss.content_target(pictures))
    total = losses.total + LATTICE_WEIGHT * lattice(painted)
    if not math.isfinite(total.item()):
        raise TrainingError(
            f"iteration {run.iteration}: the loss is {total.item()}; the last good checkpoint is kept. "
            f"Try a learning rate below {run.settings.learning_rate}"
        )
    run.optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    run.optimizer.step()
    run.iteration += 1
    newest = max(0.02, 1.0 / run.iteration)  # a mean of all at first, then of about the last fifty
    for key in ("content", "style", "total_variation"):
        run.averages[key] = (1.0 - newest) * run.averages.get(key, 0.0) + newest * getattr(losses, key).item()
    return Progress(
        run.iteration,
        run.settings.iterations,
        len(pictures) / (time.perf_counter() - started),
        skipped=skipped,
        **run.averages,
    )


def _history(style: Path, photos: int, settings: TrainingSettings) -> dict[str, Any]:
    """What contract 2 keeps of a training; names of files, no paths."""
    return {"style_picture": style.name, "photos": photos, "commit": _commit(), **asdict(settings)}


def _commit() -> str:
    """The commit of the code, if it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return result.stdout.strip() or "unknown"


def _preview_photo(candidates: list[Path]) -> Picture:
    """The first that can be read, at most 512 pixels a side, cut to the network's multiples of 4."""
    for path in candidates:
        try:
            picture = open_picture(path, max_side=512)
        except PictureError:
            if path is candidates[-1]:
                raise
            continue
        return fitted(picture, picture.width // 4 * 4, picture.height // 4 * 4)
    raise InputError("no photograph for the preview")


@torch.no_grad()
def _write_preview(network: Johnson, photo: Picture, path: Path) -> None:
    network.eval()
    painted = to_picture(network(to_tensor(photo)))
    save_picture(Picture(side_by_side([photo.pixels, painted.pixels])), path)
