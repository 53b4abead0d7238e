"""The command `nst bench`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from nst_bench import options
from nst_bench.commands import DeviceOption, Samples, Suites, chosen_device
from nst_bench.suite import Document
from nst_core.console import duration, fail, one_line_errors, progress, say, show
from nst_core.errors import InputError, NstError
from nst_core.options import CommandLine
from nst_core.shipped import checkpoint_path

app = CommandLine(cls=Suites)

Documents = Annotated[list[Path], typer.Argument(metavar="RESULTS.json", help="Results files of nst bench.")]


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    checkpoint: options.Checkpoint = options.CHECKPOINT,
    repository: options.Repository = options.REPOSITORY,
    style: options.StyleImage = None,
    short: Annotated[bool, typer.Option("--short", help="Measure the speed-up only, in about a minute.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Measure every suite at full length, in about an hour.")] = False,
    minutes: Annotated[
        float | None,
        typer.Option(help="Time limit in minutes: the least important suites are shortened or skipped."),
    ] = None,
    device: DeviceOption = "auto",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for <date>-<machine>.json, report.md and report.html.")
    ] = Path("results"),
    also: Annotated[
        list[Path] | None,
        typer.Option(
            help="Also measure latency and serving of this checkpoint or shipped style; repeatable. "
            "--full adds the gallery if it is exported.",
            rich_help_panel="Tuning",
        ),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            help="For --full: folder of photographs that no style was trained on; by default the four that ship with "
            "nst.",
            rich_help_panel="Tuning",
        ),
    ] = None,
    samples: Samples = None,
    triton: options.Triton = options.TRITON,
    vgg: options.Vgg = None,
) -> None:
    """Measure this machine: serving against Gatys' optimisation.

    Without a command, the most important suites run, in about ten minutes.
    If a suite fails, the report gives the reason. Results are written as
    they are measured, and Ctrl-C keeps them. The last line on stdout is the
    results as one JSON document.
    """
    if context.invoked_subcommand:
        return
    with one_line_errors("bench"):
        from nst_bench import report, results, run
        from nst_bench.drawing import terminal

        if (short, full, minutes is not None).count(True) > 1:
            raise InputError("--short, --full and --minutes exclude each other; give only one of them")
        if minutes is not None and not minutes > 0:
            raise InputError(f"--minutes {minutes:g} is not above 0; give a positive number of minutes")
        on = chosen_device(device)
        further = list(map(checkpoint_path, also or ())) or (
            [options.GALLERY]
            if full and (repository / options.GALLERY.stem).is_dir() and options.GALLERY.is_file()
            else []
        )
        subject = run.Subject(checkpoint, repository, triton, on, style, photos, vgg, tuple(further))
        subject.check()
        steps = run.plan("short" if short else "full" if full else "default", on, subject.also)
        total = round(min(sum(step.cost.seconds for step in steps), 60.0 * (minutes or math.inf)))
        names = ", ".join(step.name for step in steps)
        say(f"{names}: about {duration(total)}{'' if on.gpu else ' on two cores'}")
        kept: list[Path] = []

        def keep(document: Document) -> None:
            kept[:] = kept or [output / run.file_name(document)]
            results.write(results.summary(document), kept[0])
            if samples:
                results.write(document, samples)

        try:
            with progress("measuring", total, every=15.0) as update:
                measuring = run.Run(
                    steps,
                    subject,
                    keep=keep,
                    on_progress=lambda done, note: update(min(total, int(done)), note),
                    minutes=minutes,
                )
                document = results.summary(measuring.measure())
                update(total, "")
        except KeyboardInterrupt:
            say(f"interrupted; results so far: {report.write([results.read(kept[0])], output)}, {kept[0]}")
            raise
        reasons = [f"{name}: {own['missing']}" for name, own in document["suites"].items() if "missing" in own]
        if len(reasons) == len(document["suites"]):
            raise NstError(f"nothing was measured; {'; '.join(reasons)}")
        written = report.write([document], output)
        terminal.show(report.one_table(document))
        for reason in reasons:
            say(f"not measured: {reason}")
        say(f"{written}, {written.with_suffix('.html')}, {kept[0]}")
        typer.echo(json.dumps(document))


@app.command(rich_help_panel="Results")
def report(
    documents: Documents,
    readme: Annotated[
        list[Path] | None,
        typer.Option(help="Insert the tables between the marks of this page instead; repeatable."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for report.md and report.html.")] = None,
) -> None:
    """Draw tables and plots from existing results.

    Results of several machines are shown side by side.
    """
    with one_line_errors("bench"):
        from nst_bench import report as drawing
        from nst_bench import results

        read = [results.read(path) for path in documents]
        for page in readme or ():
            drawing.inject(read, page)
        if output or not readme:
            written = drawing.write(read, output or Path("results"))
            say(f"{written}, {written.with_suffix('.html')}")


@app.command(rich_help_panel="Results")
def capacity(
    documents: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS.json", help="Results of nst bench, or of its suites serving and training."),
    ],
    core_hour: Annotated[
        float | None, typer.Option(help="Price of one core per hour, in any currency; adds prices.", min=0.0)
    ] = None,
    readme: Annotated[
        Path | None, typer.Option(help="Insert the tables between the marks of this page instead of printing them.")
    ] = None,
) -> None:
    """Compute how many machines a load needs.

    Uses measured results only, and says what a billion images cost.
    """
    with one_line_errors("bench"):
        from nst_bench import capacity as planning
        from nst_bench import report, results

        text = planning.text([results.read(path) for path in documents], core_hour)
        if readme:
            report.fill(readme, {planning.BLOCK: lambda: text})
        else:
            typer.echo(text, nl=False)


@app.command(rich_help_panel="Results")
def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="Earlier results.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="Later results of the same machine.")],
    tolerance: Annotated[float, typer.Option(help="Slowdown to ignore, as a share, such as 0.05.", min=0.0)] = 0.05,
) -> None:
    """Compare two results and report what became slower.

    Exit status: 0 if nothing became slower, 1 if something did, 2 if the
    results are not comparable (different machines, too few samples, not a
    results file). The last line on stdout is the comparison as one JSON
    document.
    """
    with one_line_errors("bench"):
        from nst_bench import compare as comparing
        from nst_bench import results
        from nst_bench.drawing import terminal

        try:
            comparison = comparing.compare(results.read(before), results.read(after), tolerance=tolerance)
        except InputError as error:
            fail(error)
            raise typer.Exit(2) from error
        terminal.show(comparison.markdown)
        show(comparison.verdict)
        typer.echo(json.dumps(comparison.document))
        raise typer.Exit(comparison.exit_code)
