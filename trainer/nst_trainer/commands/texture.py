"""`nst texture`: make a texture by optimisation or with a trained network."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from nst_core.console import one_line_errors, say
from nst_core.devices import DeviceChoice
from nst_core.errors import InputError
from nst_core.options import ProgressJson, options_of
from nst_core.shipped import checkpoint_path
from nst_trainer.commands.optimize import optimize_with_progress
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
from nst_trainer.optimization.settings import MINIMUM_SIDE_PIXELS, OptimizationSettings, preset

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".model")
"""pytorch/examples' trainer writes `.model`."""

OF_CONTENT = ("content_layers", "content_weight", "colors")
"""Settings that need a content image."""


@options_of(OptimizationSettings, unset=True, hidden=("size", *OF_CONTENT))
def texture(
    context: typer.Context,
    exemplar: Annotated[
        Path, typer.Argument(help="Image of the texture, or a trained texture network (.pth).", metavar="EXEMPLAR")
    ],
    output: Output,
    *,
    shape: Annotated[str, typer.Option(help="Width x height of the result in pixels, such as 512x384.")] = "256x256",
    tileable: Annotated[
        bool, typer.Option("--tileable", help="Make opposite edges match, so that copies tile without seams.")
    ] = False,
    settings: dict[str, Any],
    preset_name: PresetName = "gatys2015-texture",
    resume: Resume = False,
    device: DeviceName = "auto",
    save_every: SaveEvery = 0,
    trace: Trace = None,
    progress_json: ProgressJson = None,
    vgg: VggPath = None,
) -> None:
    """Make a texture of any size from an example.

    From an image it takes minutes (Gatys et al. 2015), from a trained texture network milliseconds.
    """
    with one_line_errors("train", command="nst texture", progress_json=progress_json) as events:
        width, height = _shape(shape)
        exemplar = checkpoint_path(exemplar)
        if exemplar.suffix.lower() in CHECKPOINT_SUFFIXES:
            others = (
                "tileable",
                "preset_name",
                "save_every",
                "trace",
                "resume",
                "vgg",
                *sorted({*settings} - {"seed"}),
            )
            refuse(context, f"for a trained network ({exemplar.name}), which takes --shape and --seed", *others)
            _sample(exemplar, output, (height, width), settings.get("seed", 0), device)
            events.end("finished", output=output)
            return
        refuse(context, "for a texture, whose width and height are --shape", "size")
        refuse(context, "for a texture, which has no content image", *OF_CONTENT)
        settings = {"init": "faint-noise", **settings, "size": max(width, height)}
        settings.setdefault("style_scale", _own_scale(exemplar, max(width, height)))
        chosen = preset(preset_name, settings)
        refuse_without_effect(context, chosen)
        from nst_trainer.optimization.files import optimize_files

        work = partial(
            optimize_files,
            None,
            [exemplar],
            output,
            chosen,
            shape=(height, width),
            tileable=tileable,
            save_every=save_every,
            trace=trace,
            resume=resume,
        )
        optimize_with_progress(work, chosen, output, vgg, device)
        events.end("finished", output=output)


def _sample(network: Path, output: Path, shape: tuple[int, int], seed: int, wanted: DeviceChoice) -> None:
    from nst_trainer.devices import choose_device
    from nst_trainer.sampling import sample_texture

    device, chosen = choose_device(wanted)
    say(f"device {chosen}")
    sample_texture(network, output, shape, seed, device)
    say(f"wrote {output}")


def _shape(text: str) -> tuple[int, int]:
    width, separator, height = text.lower().partition("x")
    numbers = separator and width.isdigit() and height.isdigit()
    if not numbers or min(int(width), int(height)) < MINIMUM_SIDE_PIXELS:
        raise InputError(
            f"--shape is {text!r}; give width x height, each at least {MINIMUM_SIDE_PIXELS} pixels, such as 512x384"
        )
    return int(width), int(height)


def _own_scale(exemplar: Path, longer: int) -> float:
    """Return the style scale at which the exemplar keeps its own size, and so the size of its features."""
    from nst_core.images import open_image

    image = open_image(exemplar)
    return max(image.width, image.height) / longer
