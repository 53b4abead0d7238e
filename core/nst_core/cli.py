"""`nst`, the umbrella: the commands of every installed package.

The commands are found through the entry points of the group `nst.commands`, so this package
imports none of the others, and a package added later appears by itself.
"""

from __future__ import annotations

import os
from importlib.metadata import entry_points, version
from typing import Any

import typer

from nst_core.options import CommandLine


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"nst {version('nst')}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(False, "--version", help="Say the version and end.", callback=_version, is_eager=True),
) -> None:
    """Neural style transfer: train a style, export it, serve it, stylize images with it, measure it."""


def _open_standard_streams() -> None:
    """Open those that are closed: otherwise the next file gets the number of one and what libraries write to it."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(opened)


def umbrella() -> Any:
    """The command `nst` with those of every installed package below it."""
    root = CommandLine(no_args_is_help=True, rich_markup_mode="rich")
    root.callback()(_root)
    group = typer.main.get_group(root)
    for entry in sorted(entry_points(group="nst.commands"), key=lambda entry: entry.name):
        command = typer.main.get_command(entry.load())
        command.name = entry.name
        group.commands[entry.name] = command
    return group


def main() -> None:
    """Run `nst`."""
    _open_standard_streams()
    umbrella()(prog_name="nst")
