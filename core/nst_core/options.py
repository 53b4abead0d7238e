"""Command lines made of settings, so that the two cannot drift.

A settings dataclass is the one place where an option's name, type, default and help stand. The
fields' `metadata["help"]` is what `--help` shows.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from dataclasses import Field, field, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from nst_core.console import one_line_errors

HELP: Literal["rich"] | None = "rich" if shutil.get_terminal_size().columns >= 100 else None
"""How a command shows its help: its tables need 100 columns; plain text is complete on a terminal of 80."""

ProgressJson = Annotated[
    Path | None,
    typer.Option(help="Append what the command does to this file or pipe as lines of JSON, for other programs."),
]
"""`--progress-json`; the command gives it to `one_line_errors`."""


def option(default: Any, help: str) -> Any:
    """A field of a settings dataclass with its default and the help of its option."""
    return field(default=default, metadata={"help": help})


def options_of(settings: type, *, unset: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a Typer command: its parameter `settings` becomes an option for each field.

    The command gets an instance of `settings`, or with `unset` a dict of only those fields that
    were given (for commands whose defaults come from a preset). What the dataclass refuses with an
    `InputError` is one line.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [one for name, one in inspect.signature(command, eval_str=True).parameters.items() if name != "settings"]
        hints = get_type_hints(settings)
        made = [_parameter(one, hints[one.name], unset) for one in fields(settings)]
        names = [one.name for one in made]

        @wraps(command)
        def run(**given: Any) -> None:
            with one_line_errors("all"):
                chosen = {name: given.pop(name) for name in names}
                if unset:
                    given["settings"] = {name: value for name, value in chosen.items() if value is not None}
                else:
                    given["settings"] = settings(**chosen)
            command(**given)

        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in [*own, *made]]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        del run.__wrapped__  # Typer would read the old signature through it
        return run

    return decorate


def _parameter(one: Field[Any], hint: Any, unset: bool) -> inspect.Parameter:
    shown: Any = typer.Option(help=one.metadata["help"])
    annotation = Annotated[hint | None, shown] if unset else Annotated[hint, shown]
    default = None if unset else one.default
    return inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
