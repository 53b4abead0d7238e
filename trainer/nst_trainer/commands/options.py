"""Options that the commands share, and errors for options that have no effect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nst_core.devices import DEVICE_HELP, DeviceChoice
from nst_core.errors import InputError
from nst_trainer.optimization.settings import NOISE_INITS, PRESETS, OptimizationSettings

DeviceName = Annotated[DeviceChoice, typer.Option("--device", help=DEVICE_HELP)]
VggPath = Annotated[
    Path | None, typer.Option(help="VGG-16 weights file; by default downloaded once.", rich_help_panel="Files")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the same command after an interruption.")]

PresetName = Annotated[str, typer.Option("--preset", help=f"Defaults of the other options: {', '.join(PRESETS)}.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Image to write (.jpg, .png or .webp).")]
SaveEvery = Annotated[
    int,
    typer.Option(
        help="Iterations between intermediate images; 0 writes the final one only.", min=0, rich_help_panel="Progress"
    ),
]
Trace = Annotated[
    Path | None,
    typer.Option(help="Write the losses to this .json file, and a plot beside it.", rich_help_panel="Progress"),
]


def refuse(context: typer.Context, where: str, *names: str) -> None:
    """Raise `InputError` if an option of the parameters `names` is given; `where` says why it has no effect."""
    for parameter in context.command.params:
        if parameter.name in names and is_given(context, parameter.name):
            option = next(name for name in parameter.opts if name.startswith("--"))
            raise InputError(f"{option} has no effect {where}; leave it out")


def is_given(context: typer.Context, name: str) -> bool:
    """Return whether the command line has the option of the parameter `name`."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_without_effect(context: typer.Context, settings: OptimizationSettings) -> None:
    """Raise `InputError` for an option that has no effect with the chosen preset and settings."""
    if settings.optimizer == "adam":
        refuse(context, "with --optimizer adam", "step", "history", "frequency_decay")
    else:
        refuse(context, "with --optimizer lbfgs", "learning_rate")
    if settings.scales == 1:
        refuse(context, "with --scales 1", "coarse_iterations")
    if settings.init not in NOISE_INITS:
        refuse(context, f"with --init {settings.init}, which uses no noise", "seed")
