"""`nst train`: train a feed-forward network from style images and photographs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nst_core.console import one_line_errors, progress, say
from nst_core.errors import InputError
from nst_core.images import find_images, unreadable_images, unreadable_summary
from nst_core.options import ProgressJson, options_of
from nst_trainer.commands.options import DeviceName, Resume, VggPath, is_given, refuse
from nst_trainer.training.settings import TrainingSettings

if TYPE_CHECKING:
    from nst_trainer.checkpoint import Checkpoint
    from nst_trainer.training.loop import Progress, Training

MAXIMUM_NAMED_FILES = 5
"""How many skipped photographs are named; the rest are only counted at the end."""


@options_of(TrainingSettings)
def train(
    context: typer.Context,
    *,
    style: Annotated[
        Path | None, typer.Option(help="Style image, or a folder of them for one network with all the styles.")
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            help="Folder of training photographs, with its subfolders; by default the four that ship with nst."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Checkpoint to write; by default the style's name.pth.")
    ] = None,
    settings: TrainingSettings,
    minutes: Annotated[
        float | None, typer.Option(help="Training time in minutes; it replaces --iterations.", min=0.1)
    ] = None,
    resume: Resume = False,
    device: DeviceName = "auto",
    add: Annotated[
        Path | None,
        typer.Option(
            help="Style image (or a folder of them) to add to --to, whose styles stay unchanged.",
            rich_help_panel="Style",
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Checkpoint or shipped style that --add extends.", rich_help_panel="Style")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Checkpoint or shipped style to start from, with its --arch and --width.",
            rich_help_panel="Model",
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint of the same styles to distil from, which shortens training.", rich_help_panel="Model"
        ),
    ] = None,
    every: Annotated[
        int,
        typer.Option(
            help="Iterations between checkpoints, validations and previews.", min=1, rich_help_panel="Progress"
        ),
    ] = 100,
    preview: Annotated[
        Path | None,
        typer.Option(help="Photograph for the preview; by default the first of --photos.", rich_help_panel="Progress"),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(help="Folder for TensorBoard logs: losses and stylized photographs.", rich_help_panel="Progress"),
    ] = None,
    progress_json: ProgressJson = None,
    workers: Annotated[int, typer.Option(help="Threads that read photographs.", min=1, rich_help_panel="Tuning")] = 2,
    vgg: VggPath = None,
) -> None:
    """Train a network for the style of one image, or of many.

    With --add, a trained network learns one more style in minutes.
    """
    leads = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts
    with one_line_errors("train", command="nst train", progress_json=progress_json if leads else None) as events:
        if (add is None) == (style is None) or (add is None) != (to is None):
            raise InputError("give either --style IMAGE (or a folder of images), or --add IMAGE with --to CHECKPOINT")
        if minutes is not None:
            refuse(context, "with --minutes, which sets their number", "iterations")
        if add is not None:
            refuse(context, "with --add, which keeps the network of --to", "arch", "width", "texture", "start")
        elif start is not None:
            settings = _with_network_of(start, settings, context)
        if settings.texture:
            without = ("photos", "preview", "workers", "content_weight")
            refuse(context, "for a texture network, which uses no photographs", *without)
        from nst_core.process import keep_freed_memory
        from nst_trainer.signals import interrupt_on_signals
        from nst_trainer.training.distributed.team import join_team
        from nst_trainer.training.loop import Training
        from nst_trainer.vgg import Vgg16
        from nst_trainer.weights import vgg16_weights

        interrupt_on_signals()
        keep_freed_memory()
        chosen = add or style
        assert chosen is not None
        output = output or (to if to and to.exists() else Path(f"{(to or chosen).stem}.pth"))
        with join_team(device) as team:
            if team.leads:
                say(f"device {team.chosen}")
            styles = find_images(chosen) if chosen.is_dir() else [chosen]
            training = Training(
                styles,
                photos,
                output,
                Vgg16(vgg16_weights(vgg, on_source=say if team.leads else lambda message: None)),
                settings,
                minutes=minutes,
                start=start,
                add_to=to,
                teacher=teacher,
                resume=resume,
                workers=workers,
                preview=preview,
                every=every,
                log=log,
                team=team,
            )
            if not team.leads:
                training.run()
                return
            _report_unreadable(chosen, photos)
            _report_plan(training, start or to, few=photos is None and not training.settings.texture)
            result = _train_with_progress(training)
        _report_result(result, output, texture=training.settings.texture)
        events.end("finished", output=output, styles=list(result.styles))


def _with_network_of(start: Path, settings: TrainingSettings, context: typer.Context) -> TrainingSettings:
    """Return `settings` with the network of the checkpoint `start`, but for the options that are given.

    Raises `CheckpointError` for a file that is no checkpoint.
    """
    from nst_trainer.checkpoint import load

    network = load(start).network
    present = {
        "arch": network.name,
        "width": network.arguments["width"],
        "texture": network.arguments.get("texture", False),
    }
    return replace(settings, **{name: value for name, value in present.items() if not is_given(context, name)})


def _report_unreadable(*folders: Path | None) -> None:
    for folder in folders:
        if folder and folder.is_dir() and (unreadable := unreadable_summary(unreadable_images(folder))):
            say(f"{folder}: {unreadable}")


def _report_plan(training: Training, start: Path | None, *, few: bool) -> None:
    settings = training.settings
    say(f"network: {settings.arch}, width {settings.width:g}{f', from {start}' if start else ''}")
    steps = ", ".join(f"{count} at {side}" for side, count in settings.crops().items())
    budget = training.budget
    time = f"{budget.seconds / 60:g} minutes ({budget.used() / 60:.1f} used), about " if budget else ""
    say(
        f"training: {time}{settings.iterations} iterations of {settings.batch} crops ({steps} pixels), "
        f"learning rate {settings.learning_rate:g} falling to 0, {str(training.precision).removeprefix('torch.')} "
        f"({training.why_precision})"
    )
    if few:
        say(
            "no --photos: training on the 4 photographs that ship with nst, enough for a trial; "
            "give a folder of photographs for a style to keep"
        )


def _report_result(result: Checkpoint, output: Path, *, texture: bool) -> None:
    names, history = ", ".join(result.styles), result.training
    photographs = (
        f" (trained on {history['photos']} photographs; skipped {history['skipped']} unreadable files and "
        f"{history['blank']} with a crop of one colour)"
    )
    say(f"wrote {output}: {names}{'' if texture else photographs}")


def _train_with_progress(training: Training) -> Checkpoint:
    """Train with a progress bar, name the skipped photographs, and say after Ctrl-C how to continue."""
    settings, budget = training.settings, training.budget
    share = None if budget else settings.work_shares().__getitem__
    unit, total = ("seconds", round(budget.seconds)) if budget else ("", settings.iterations)
    named: set[Path] = set()
    with progress("training", total, unit=unit, share=share) as update:

        def show(now: Progress) -> None:
            _name_left_out(training, named)
            done = min(round(budget.used()), total - (now.done < 1.0)) if budget else now.iteration
            speed = {"iteration": now.iteration, "images_per_second": now.images_per_second}
            update(done, _note(training, now), **speed, **_losses(now))

        try:
            return training.run(show)
        except KeyboardInterrupt:
            if training.state_file.exists():
                say(f"saved the training in {training.state_file}; repeat the command with --resume to continue")
            raise


def _name_left_out(training: Training, named: set[Path]) -> None:
    """Name the first skipped photographs that are not in `named` yet, and add them to it."""
    reader = training.reader
    for path in sorted((reader.blank | reader.broken) - named)[: MAXIMUM_NAMED_FILES - len(named)]:
        reason = "cannot be read" if path in reader.broken else "has a crop of one colour"
        say(f"skipped {path}: {reason}")
        named.add(path)


def _losses(now: Progress) -> dict[str, float]:
    """Return the losses of this part of the training, by their names in `--progress-json`."""
    if now.distillation:
        return {"distillation_loss": now.distillation}
    losses = {
        "style_loss": now.style,
        "content_loss": now.content,
        "total_variation_loss": now.total_variation,
        "temporal_loss": now.temporal,
    }
    return {name: loss for name, loss in losses.items() if loss}


def _note(training: Training, now: Progress) -> str:
    """Return throughput and losses, as the progress bar shows them."""
    parts = [f"iteration {now.iteration}"] if training.budget else []
    parts.append(f"{now.images_per_second:.1f} images/s")
    if now.distillation:
        parts.append(f"distillation {now.distillation:.2f}")
    else:
        parts.append(f"style {now.style:.2f}")
        if not training.settings.texture:
            parts.append(f"content {now.content:.2f}")
        if training.settings.temporal_weight:
            parts.append(f"temporal {now.temporal:.2f}")
    if now.skipped:
        parts.append(f"{now.skipped} files skipped")
    return "  ".join(parts)
