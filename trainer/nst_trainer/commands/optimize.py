"""`nst optimize`: stylize a content image by optimisation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nst_core.console import one_line_errors, progress, say
from nst_core.devices import DeviceChoice
from nst_core.errors import InputError
from nst_core.options import ProgressJson, options_of
from nst_trainer.commands.options import (
    DeviceName,
    Output,
    PresetName,
    Resume,
    SaveEvery,
    Trace,
    VggPath,
    refuse,
    refuse_without_effect,
)
from nst_trainer.optimization.settings import OptimizationSettings, preset

if TYPE_CHECKING:
    from nst_trainer.optimization.gatys import Iteration


@options_of(OptimizationSettings, unset=True)
def optimize(
    context: typer.Context,
    content: Annotated[Path, typer.Argument(help="Content image.", metavar="CONTENT")],
    styles: Annotated[list[Path], typer.Argument(help="Style images; several are interpolated.", metavar="STYLE")],
    output: Output,
    settings: dict[str, Any],
    preset_name: PresetName = "best",
    resume: Resume = False,
    device: DeviceName = "auto",
    style_blend_weights: Annotated[
        str,
        typer.Option(
            help="Interpolation weights of the style images, such as 2,1; by default equal.", rich_help_panel="Style"
        ),
    ] = "",
    content_mask: Annotated[
        Path | None,
        typer.Option(
            help="Mask of flat colours: a region takes its style from the style mask's region of that colour.",
            rich_help_panel="Style",
        ),
    ] = None,
    style_mask: Annotated[
        list[Path] | None,
        typer.Option(help="Mask of a style image; repeat it for each style image.", rich_help_panel="Style"),
    ] = None,
    save_every: SaveEvery = 0,
    trace: Trace = None,
    progress_json: ProgressJson = None,
    vgg: VggPath = None,
) -> None:
    """Stylize one image by optimisation, without training.

    It takes minutes per image (Gatys et al. 2016); a trained network takes milliseconds (nst train).
    """
    with one_line_errors("train", command="nst optimize", progress_json=progress_json) as events:
        if bool(content_mask) != bool(style_mask) or (style_mask and len(style_mask) != len(styles)):
            raise InputError(
                f"{int(bool(content_mask))} --content-mask and {len(style_mask or [])} --style-mask for "
                f"{len(styles)} style images; give --content-mask, and --style-mask once per style image"
            )
        masks = (content_mask, style_mask) if content_mask and style_mask else None
        chosen = preset(preset_name, settings)
        refuse_without_effect(context, chosen)
        if len(styles) == 1:
            refuse(context, "with one style", "style_blend_weights")
        style_weights = _numbers(style_blend_weights)
        from nst_trainer.optimization.files import optimize_files

        work = partial(
            optimize_files,
            content,
            styles,
            output,
            chosen,
            style_weights=style_weights,
            masks=masks,
            save_every=save_every,
            trace=trace,
            resume=resume,
        )
        optimize_with_progress(work, chosen, output, vgg, device)
        events.end("finished", output=output)


def optimize_with_progress(
    work: Callable[..., None], settings: OptimizationSettings, output: Path, vgg: Path | None, wanted: DeviceChoice
) -> None:
    """Run `work` (`optimize_files` with its files) with a progress bar; after Ctrl-C say how to continue."""
    from nst_core.process import keep_freed_memory
    from nst_trainer.devices import choose_device
    from nst_trainer.signals import interrupt_on_signals
    from nst_trainer.weights import vgg16_weights

    interrupt_on_signals()
    keep_freed_memory()
    device, chosen = choose_device(wanted)
    say(f"device {chosen}")
    total = settings.total_iterations()
    with progress("optimizing", total, share=settings.work_shares().__getitem__) as update:

        def show(now: Iteration) -> None:
            size = f"{now.size[1]}x{now.size[0]}"
            note = f"{size}  loss {now.total:.4g}  style {now.style:.4g}  content {now.content:.4g}"
            update(now.number, note, loss=now.total, style_loss=now.style, content_loss=now.content)

        try:
            work(weights=vgg16_weights(vgg, on_source=say), device=device, on_iteration=show)
        except KeyboardInterrupt:
            say(f"wrote the image so far to {output}; repeat the command with --resume to continue")
            raise
    say(f"wrote {output}")


def _numbers(text: str) -> list[float] | None:
    try:
        return [float(part) for part in text.split(",")] if text else None
    except ValueError:
        raise InputError(f"--style-blend-weights is {text!r}; give numbers separated by commas, such as 2,1") from None
