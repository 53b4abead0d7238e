"""The command of each suite, made of the suite: its options, what it writes, what it shows."""

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
    Path | None, typer.Option("--samples", help="A file for the results with every single sample (.json).")
]
Full = Annotated[bool, typer.Option("--full", help="Larger images and more of them.")]

JSON = "The last line on stdout is the results as one JSON document."


class Suites(Group):
    """A group with a command for each suite, beside those that it is given."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands.update({name: SuiteCommand(name) for name in suites.names()})


class SuiteCommand(Command):
    """The command of a suite, whose file is imported when its options are asked for."""

    def __init__(self, name: str) -> None:
        self._suite_name = name
        text = suites.description(name)
        super().__init__(
            name,
            rich_markup_mode=HELP,
            help=f"{text}\n\n{JSON}",
            short_help=text.partition("\n\n")[0].replace("\n", " "),
        )

    @cached_property
    def made(self) -> Any:
        """The command as Typer makes it of the suite."""
        app = CommandLine()
        app.command(self._suite_name)(_function(suites.load(self._suite_name)))
        return typer.main.get_command(app)

    @property
    def params(self) -> Any:
        """Its options."""
        return self.made.params

    @params.setter
    def params(self, value: Any) -> None:
        """Typer sets none; they are the suite's."""

    @property
    def callback(self) -> Any:
        """What it runs."""
        return self.made.callback

    @callback.setter
    def callback(self, value: Any) -> None:
        """Typer sets none; it is the suite's."""


def chosen_device(wanted: DeviceChoice) -> Device:
    """The device for `--device`, said with its reason. Raises `InputError` where `gpu` has none."""
    device = devices.choose(wanted)
    say(f"device {device}")
    return device


def _function(suite: Suite[Any]) -> Callable[..., None]:
    """What the command of a suite runs; Typer makes its options of the signature."""
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
        "The results to write (.json), a plot beside it." if suite.plot_beside else "The results to write (.json)."
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
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def finish(suite: Suite[Any], document: dict[str, Any], output: Path, samples: Path | None) -> None:
    """The tables on the screen, the document in its file and on stdout. Raises `NstError` for a failure."""
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
