"""`nst`, the umbrella: the commands of every installed package.

The commands are found through the entry points of the group `nst.commands`, so this package
imports none of the others, and the commands of a later package appear automatically.

Shell completion of `nst` completes commands, options and their choices: `nst --install-completion`.
"""

from __future__ import annotations

import os
from importlib.metadata import entry_points, version
from typing import Any

import typer

from nst_core.options import GLOBAL, CommandLine, Group

PANELS = {
    "From a style image to stylized images": ("train", "export", "serve", "stylize"),
    "Applications": ("styles", "video", "webcam", "web", "batch"),
    "Without training": ("optimize", "texture"),
    "Measure": ("bench",),
}
"""The commands as `nst` shows them, in the order in which they are used; one that is not named here comes last."""


class _Umbrella(Group):
    """The commands in the order of `PANELS`, which the help and the completion follow."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, those of `PANELS` first."""
        named = [name for names in PANELS.values() for name in names if name in self.commands]
        return [*named, *sorted(set(self.commands) - set(named))]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"nst {version('nst')}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False,
        "--version",
        help="Show the version and exit.",
        callback=_version,
        is_eager=True,
    ),
) -> None:
    """Train, export, serve and benchmark fast neural style transfer.

    nst COMMAND --help explains a command; nst --install-completion completes commands and options in your shell.
    """


def _open_standard_streams() -> None:
    """Open the standard streams that are closed; otherwise the next file would get a stream's number and its output."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(opened)


def umbrella() -> Any:
    """Return the command `nst` with those of every installed package below it."""
    root = CommandLine(no_args_is_help=True, cls=_Umbrella, add_completion=True)
    root.callback()(_root)
    group: Any = typer.main.get_command(root)
    for parameter in group.params:
        parameter.rich_help_panel = GLOBAL  # also of those that install completion
    panels = {name: panel for panel, names in PANELS.items() for name in names}
    for entry in entry_points(group="nst.commands"):
        command: Any = typer.main.get_command(entry.load())
        command.name = entry.name
        command.rich_help_panel = panels.get(entry.name, "More")
        group.commands[entry.name] = command
    return group


def main() -> None:
    """Run `nst`."""
    _open_standard_streams()
    umbrella()(prog_name="nst")
