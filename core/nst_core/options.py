"""Command lines: what every program has in common, and options that are made of settings.

`CommandLine` is Typer with our defaults and `-v` and `-q` on every command.

A settings dataclass is the only source of an option's name, type, default and help, so that command line and API
cannot drift. The fields' `metadata["help"]` is what `--help` shows.
"""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import Field, field, fields
from difflib import get_close_matches
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from nst_core.console import one_line_errors, verbosity
from nst_core.process import settings_of_a_command

GLOBAL = "Global options"
"""The panel of the options that every command has; it comes last."""

HELP: Literal["rich"] | None = "rich" if shutil.get_terminal_size().columns >= 100 else None
"""How a command shows its help: its tables need 100 columns; plain text is complete on a terminal of 80."""

ProgressJson = Annotated[
    Path | None,
    typer.Option(help="File or pipe to append progress events to, as lines of JSON.", rich_help_panel="Progress"),
]
"""`--progress-json`; the command gives it to `one_line_errors`."""

Function = TypeVar("Function", bound=Callable[..., Any])


class _Explained:
    """What commands and groups add to Typer's: `--help` among the global options, errors that name the value."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return `--help`, in the panel of the global options."""
        option: Any = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.rich_help_panel = GLOBAL
        return option

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse a command line; an error names the rejected value."""
        with _named_values(args):
            parsed: list[str] = super().parse_args(ctx, args)  # type: ignore[misc]
        return parsed


class Command(_Explained, TyperCommand):
    """A command that shows the panels of its options in plain help, too; Typer draws them with Rich only."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel, in the order in which the panels first appear."""
        _write_sections(help_panels(self, ctx), formatter)


class Group(_Explained, TyperGroup):
    """A group of commands with the same help as `Command`, and whole sentences about its commands."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel of commands, then for each panel of options."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            panels.setdefault(panel, []).append((name, command.get_short_help_str(1000)))
        _write_sections(panels, formatter)
        _write_sections(help_panels(self, ctx), formatter)


@contextmanager
def _named_values(words: list[str]) -> Iterator[None]:
    """Add the rejected value to Typer's message, which does not always include it."""
    words = list(words)  # parsing takes them away
    try:
        yield
    except typer.BadParameter as error:
        names = getattr(error.param, "opts", ())
        values = [value for word, value in pairwise(words) if word in names]
        values += [word.partition("=")[2] for word in words if word.partition("=")[0] in names and "=" in word]
        for value in values[-1:]:
            choices = re.findall(r"'([^']+)'", error.message.partition(" is not one of ")[2])
            nearest = "".join(f"; did you mean {name!r}?" for name in get_close_matches(value, choices, 1))
            message = error.message.removeprefix("Value error, ").rstrip(".") + nearest
            error.message = re.sub(r"^Input should be", f"{value!r} should be", message)
        raise


def _write_sections(panels: dict[str, list[tuple[str, str]]], formatter: Any) -> None:
    for panel, records in panels.items():
        with formatter.section(panel):
            formatter.write_dl(records)


def help_panels(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """Return what `--help` shows of a command's parameters: by panel, each parameter's names and its help."""
    panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(context):
        default = "Arguments" if parameter.param_type_name == "argument" else "Options"
        panel = getattr(parameter, "rich_help_panel", None) or default
        if record := parameter.get_help_record(context):
            panels.setdefault(panel, []).append(record)
    return {panel: records for panel, records in panels.items() if records}


class CommandLine(typer.Typer):
    """A program: every command of it has `--verbose` and `--quiet`, also before the name of a subcommand."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"add_completion": False, "rich_markup_mode": HELP, "cls": Group, **settings})

    def command(self, *names: Any, **settings: Any) -> Callable[[Function], Function]:
        """Register a command, as Typer's method does."""
        return _registered(super().command, names, {"cls": Command, **settings})

    def callback(self, **settings: Any) -> Callable[[Function], Function]:
        """Register what runs before the subcommands, as Typer's method does."""
        return _registered(super().callback, (), settings)


def _registered(
    register: Callable[..., Callable[..., Any]], names: tuple[Any, ...], settings: dict[str, Any]
) -> Callable[[Function], Function]:
    def decorate(function: Function) -> Function:
        settings.setdefault("help", _paragraphs(function))
        register(*names, **settings)(_with_verbosity(function))
        return function

    return decorate


def _paragraphs(function: Callable[..., Any]) -> str:
    """Return a docstring with each paragraph in one line, since Rich would keep the breaks."""
    text = inspect.getdoc(function) or ""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


_VERBOSE = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        show_default=False,
        help="Print more detail; -vv for debugging.",
        rich_help_panel=GLOBAL,
    ),
]
_QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and results only.", rich_help_panel=GLOBAL)]


def _with_verbosity(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--verbose` and `--quiet` to a command; they and Pillow's settings hold until it and its subcommand end."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())
    taken = next((parameter.name for parameter in own if parameter.annotation is typer.Context), None)

    @wraps(command)
    def run(**given: Any) -> Any:
        context = given[taken] if taken else given.pop("_context")
        verbose, quiet = given.pop("verbose"), given.pop("quiet")
        if verbose and quiet:
            raise typer.BadParameter("give --verbose or --quiet, not both")
        if verbose or quiet or context.parent is None:
            context.with_resource(verbosity(verbose, quiet))
        if context.parent is None:
            context.with_resource(settings_of_a_command())
        return command(**given)

    added = [_keyword("verbose", _VERBOSE, 0), _keyword("quiet", _QUIET, False)]
    if not taken:
        added.append(_keyword("_context", typer.Context))
    _declare(run, [*own, *added])
    return run


def _keyword(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _declare(function: Callable[..., Any], parameters: list[inspect.Parameter]) -> None:
    """Give a wrapper the parameters that Typer makes options and arguments of."""
    named = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    function.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in named}
    del function.__wrapped__  # type: ignore[attr-defined]  # Typer would read the old signature through it


def option(default: Any, help: str, panel: str | None = None) -> Any:
    """Define a field of a settings dataclass: its default, its option's help, and the option's panel in `--help`."""
    return field(default=default, metadata={"help": help, "panel": panel})


def options_of(
    settings: type, *, unset: bool = False, hidden: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a Typer command: an option for each field takes the place of its parameter `settings`.

    The command gets an instance of `settings`, or with `unset` a dict of only those fields that
    were given (for commands whose defaults come from a preset). An `InputError` of the
    dataclass is printed on one line. The options of the fields `hidden` are not in `--help`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(command, eval_str=True).parameters
        own = list(parameters.values())
        position = list(parameters).index("settings")
        hints = get_type_hints(settings)
        made = [_parameter(each, hints[each.name], unset, each.name in hidden) for each in fields(settings)]
        names = [parameter.name for parameter in made]

        @wraps(command)
        def run(**given: Any) -> None:
            with one_line_errors("all"):
                chosen = {name: given.pop(name) for name in names}
                if unset:
                    given["settings"] = {name: value for name, value in chosen.items() if value is not None}
                else:
                    given["settings"] = settings(**chosen)
            command(**given)

        _declare(run, [*own[:position], *made, *own[position + 1 :]])
        return run

    return decorate


def _parameter(setting: Field[Any], hint: Any, unset: bool, hidden: bool) -> inspect.Parameter:
    about = setting.metadata
    option: Any = typer.Option(help=about["help"], rich_help_panel=about["panel"], hidden=hidden)
    if unset:
        return _keyword(setting.name, Annotated[hint | None, option], None)
    return _keyword(setting.name, Annotated[hint, option], setting.default)
