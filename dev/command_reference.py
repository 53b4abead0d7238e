"""An mkdocs hook: the reference of the commands, drawn from Typer, so that it cannot differ from `--help`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from nst_core.cli import PANELS, umbrella
from nst_core.options import help_panels

FOLDER = "reference/commands"


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add a page for each command, and the list of them."""
    root = umbrella()
    with root.make_context("nst", [], resilient_parsing=True) as context:
        pages = {name: "\n".join(_described(root.commands[name], name, context)) for name in root.commands}
    pages["index"] = "\n".join(["# Commands", *_listed(root)])
    for name, text in pages.items():
        files.append(File.generated(config, f"{FOLDER}/{name}.md", content=text))


def _listed(root: Any) -> Iterator[str]:
    for panel, names in PANELS.items():
        yield from ("", f"| {panel} | |", "|---|---|")
        for name in names:
            yield f"| [`nst {name}`]({name}.md) | {_escaped(root.commands[name].get_short_help_str(1000))} |"


def _described(command: Any, name: str, parent: Any, level: int = 1) -> Iterator[str]:
    with command.make_context(name, [], parent=parent, resilient_parsing=True) as context:
        yield from (f"{'#' * level} {context.command_path}", "", _escaped(command.help or ""), "")
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        yield from ("```text", usage, "```", "")
        for panel, records in help_panels(command, context).items():
            if panel == "Global options" and level > 1:
                continue
            yield from (f"| {panel} | |", "|---|---|")
            yield from (f"| `{names}` | {_escaped(help)} |" for names, help in records)
            yield ""
        for below, found in getattr(command, "commands", {}).items():
            yield from _described(found, below, context, 2)


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", escape(text, quote=False))
