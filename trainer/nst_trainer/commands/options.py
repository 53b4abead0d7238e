"""Options that the commands share, and refusals of options that have no effect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nst_core.devices import DEVICE_HELP, DeviceChoice
from nst_core.errors import InputError
from nst_trainer.optimization.settings import NOISE_INITS, PRESETS, OptimizationSettings

DeviceName = Annotated[DeviceChoice, typer.Option("--device", help=DEVICE_HELP)]
VggPath = Annotated[Path | None, typer.Option(help="VGG-16's weights; downloaded once if not given.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue where the same command stopped.")]

PresetName = Annotated[str, typer.Option("--preset", help=f"Where the other options start: {', '.join(PRESETS)}.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The image to write (.jpg, .png, .webp).")]
SaveEvery = Annotated[
    int, typer.Option(help="Write the image so far every this many iterations; 0: only at the end.", min=0)
]
Trace = Annotated[Path | None, typer.Option(help="Write losses over iterations and seconds (.json), and a plot.")]


def refuse(context: typer.Context, where: str, *names: str) -> None:
    """`InputError` if the command line has an option of the parameters `names`, which would have no effect there."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            option = next(name for name in parameter.opts if name.startswith("--"))
            raise InputError(f"{option} has no effect {where}; leave it out")


def refuse_without_effect(context: typer.Context, settings: OptimizationSettings) -> None:
    """`InputError` for an option that another option, or the preset, leaves without effect."""
    if settings.optimizer == "adam":
        refuse(context, "with --optimizer adam", "step", "history", "frequency_decay")
    else:
        refuse(context, "with --optimizer lbfgs", "learning_rate")
    if settings.scales == 1:
        refuse(context, "with --scales 1", "coarse_iterations")
    if settings.init not in NOISE_INITS:
        refuse(context, f"with --init {settings.init}, which draws no noise", "seed")
