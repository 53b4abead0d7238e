"""`nst bench` and `nst-bench`."""

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

app = CommandLine(rich_markup_mode="rich", cls=Suites)

Documents = Annotated[list[Path], typer.Argument(metavar="RESULTS.json...", help="Results of nst-bench.")]


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    checkpoint: options.Checkpoint = options.CHECKPOINT,
    repository: options.Repository = options.REPOSITORY,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for <date>-<machine>.json, report.md and report.html.")
    ] = Path("results"),
    short: Annotated[bool, typer.Option("--short", help="A minute: the speed-up alone, of few samples.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Every suite at its full length.")] = False,
    style: options.StyleImage = None,
    photos: Annotated[
        Path | None,
        typer.Option(help="Photographs that the style never saw, a folder for --full; if not given, the four of nst."),
    ] = None,
    triton: options.Triton = options.TRITON,
    vgg: options.Vgg = None,
    device: DeviceOption = "auto",
    minutes: Annotated[
        float | None,
        typer.Option(help="The time that there is: what matters most comes first, the rest is shortened or left out."),
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            help="A further exported style whose latency and serving are measured shortly; again for more. "
            "--full takes the gallery if it is exported."
        ),
    ] = None,
    samples: Samples = None,
) -> None:
    """Measure this machine in about ten minutes: a served style, and Gatys' optimisation on the same device.

    A suite that fails is a missing cell with its reason. Each result is written at once, and Ctrl-C keeps what is
    done. The last line on stdout is the results as one JSON document.
    """
    if context.invoked_subcommand:
        return
    with one_line_errors("bench"):
        from nst_bench import report, results, run
        from nst_bench.drawing import terminal

        if (short, full, minutes is not None).count(True) > 1:
            raise InputError("--short, --full and --minutes exclude each other: give one of them")
        if minutes is not None and not minutes > 0:
            raise InputError(f"--minutes is {minutes:g}: it must be above 0")
        on = chosen_device(device)
        further = also or (
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
                    on_progress=lambda behind, note: update(min(total, int(behind)), note),
                    minutes=minutes,
                )
                document = results.summary(measuring.measure())
                update(total, "")
        except KeyboardInterrupt:
            say(f"what was measured until now: {report.write([results.read(kept[0])], output)}, {kept[0]}")
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


@app.command()
def report(
    documents: Documents,
    readme: Annotated[
        list[Path] | None,
        typer.Option(help="Put the tables between this page's markers instead; again for more pages."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for report.md and report.html.")] = None,
) -> None:
    """Draw the tables and plots of earlier results again; those of several machines side by side."""
    with one_line_errors("bench"):
        from nst_bench import report as drawing
        from nst_bench import results

        read = [results.read(path) for path in documents]
        for page in readme or ():
            drawing.inject(read, page)
        if output or not readme:
            written = drawing.write(read, output or Path("results"))
            say(f"{written}, {written.with_suffix('.html')}")


@app.command()
def capacity(
    documents: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS.json...", help="Results of nst-bench serving, and training or a run."),
    ],
    core_hour: Annotated[
        float | None, typer.Option(help="What a core costs an hour, in any currency: adds prices.", min=0.0)
    ] = None,
    readme: Annotated[
        Path | None, typer.Option(help="Put the tables between this page's markers instead of on stdout.")
    ] = None,
) -> None:
    """Say how many machines a load needs, and what a billion images cost, from earlier results."""
    with one_line_errors("bench"):
        from nst_bench import capacity as planning
        from nst_bench import report, results

        text = planning.text([results.read(path) for path in documents], core_hour)
        if readme:
            report.fill(readme, {planning.BLOCK: lambda: text})
        else:
            typer.echo(text, nl=False)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="The earlier results.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The later ones, of the same machine.")],
    tolerance: Annotated[
        float, typer.Option(help="Share by which a row may be slower: machines have days, too.", min=0.0)
    ] = 0.05,
) -> None:
    """Say what became slower from A to B, with confidence.

    Exit status: 0 as fast or faster, 1 something became slower, 2 not comparable (another machine, too few samples, no
    results). The last line on stdout is the comparison as one JSON document.
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
