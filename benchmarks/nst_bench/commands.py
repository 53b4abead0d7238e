"""The command of each suite, built from the suite: its options, what it writes, and what it shows."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer

from nst_bench import suite as suites
from nst_bench.suite import Context, Suite
from nst_core import devices
from nst_core.console import one_line_errors, say
from nst_core.devices import DEVICE_HELP, Device, DeviceChoice
from nst_core.errors import NstError
from nst_core.files import atomic_write
from nst_core.options import HELP, Command, CommandLine, Group

DeviceOption = Annotated[DeviceChoice, typer.Option("--device", help=DEVICE_HELP)]
Samples = Annotated[
    Path | None,
    typer.Option(
        "--samples", help="Also write the results with every sample to this file (.json).", rich_help_panel="Files"
    ),
]
Full = Annotated[bool, typer.Option("--full", help="Measure larger images, and more of them.")]

JSON = "The last line on stdout is the results as one JSON document."

PANELS = (None, "Tuning", "Files")
"""In the order of `--help`; None is the default panel."""


class Suites(Group):
    """A group with a command for each suite, besides the commands that it is given."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands.update({name: SuiteCommand(name) for name in suites.names()})


class SuiteCommand(Command):
    """The command of a suite, whose module is imported only when its options are needed."""

    def __init__(self, name: str) -> None:
        self._suite_name = name
        text = suites.description(name)
        super().__init__(
            name,
            rich_markup_mode=HELP,
            rich_help_panel="Suites",
            help="\n\n".join(" ".join(part.split()) for part in (*text.split("\n\n"), JSON)),
            short_help=text.partition("\n\n")[0].replace("\n", " "),
        )

    @cached_property
    def made(self) -> Any:
        """The command that Typer builds from the suite."""
        app = CommandLine()
        app.command(self._suite_name)(_function(suites.load(self._suite_name)))
        return typer.main.get_command(app)

    @property
    def params(self) -> Any:
        """The options of the suite."""
        return self.made.params

    @params.setter
    def params(self, value: Any) -> None:
        """Ignore what Typer sets: the options are the suite's."""

    @property
    def callback(self) -> Any:
        """The function that the command runs."""
        return self.made.callback

    @callback.setter
    def callback(self, value: Any) -> None:
        """Ignore what Typer sets: the function is the suite's."""


def chosen_device(wanted: DeviceChoice) -> Device:
    """Return the device for `--device` and print it with its reason. Raises `InputError` for `gpu` without a GPU."""
    device = devices.choose(wanted)
    say(f"device {device}")
    return device


def _function(suite: Suite[Any]) -> Callable[..., None]:
    """Return what a suite's command runs; Typer builds its options from the signature."""
    changeable = [parameter.name for parameter in suite.effort_options]

    def command(output: Path, samples: Path | None, device: DeviceChoice, full: bool = False, **options: Any) -> None:
        with one_line_errors(suite.extra):
            from nst_core.process import keep_freed_memory

            keep_freed_memory()
            on = chosen_device(device)
            given = {name: options.pop(name) for name in changeable}
            effort = replace(suite.effort_of_command(full, on), **given)
            finish(suite, suite.run(Context(on, effort, say), **options), output, samples)

    help_of_output = (
        "Results file (.json); the plot is written beside it." if suite.plot_beside else "Results file (.json)."
    )
    output = Annotated[Path, typer.Option("--output", "-o", help=help_of_output)]
    parameters = [
        *suite.options,
        *suite.effort_options,
        *([_parameter("full", Full, False)] if suite.has_full else []),
        _parameter("output", output, Path(f"results/{suite.name}.json")),
        _parameter("samples", Samples, None),
        _parameter("device", DeviceOption, "auto"),
    ]
    parameters.sort(key=lambda parameter: PANELS.index(_panel(parameter)))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _panel(parameter: inspect.Parameter) -> str | None:
    """Return an option's panel in `--help`."""
    return next((given.rich_help_panel for given in getattr(parameter.annotation, "__metadata__", ())), None)


def finish(suite: Suite[Any], document: dict[str, Any], output: Path, samples: Path | None) -> None:
    """Show the tables, and write the document to its file and to stdout. Raises `NstError` if the suite failed."""
    from nst_bench import report, results
    from nst_bench.drawing import terminal

    if suite.plot_beside and (plot := suite.plots[0]({suite.name: document}, results.machine_name(document))):
        with atomic_write(output.with_suffix(".png")) as temporary:
            temporary.write_bytes(plot.png)
    if samples:
        results.write(document, samples)
    summary = results.summary(document)
    results.write(summary, output)
    terminal.show(report.markdown(summary))
    typer.echo(json.dumps(summary))
    if suite.failure and (reason := suite.failure(document)):
        raise NstError(reason)
