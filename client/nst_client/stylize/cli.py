"""`nst stylize` and `nst styles`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from nst_client.base_client import OnTile
from nst_client.client import StyleClient
from nst_client.options import (
    DEFAULT_URL,
    PROGRESS_PANEL,
    RETRIES,
    TUNING_PANEL,
    CaFile,
    FileFormat,
    MaxPixels,
    MaxSide,
    PreserveColor,
    Quality,
    Strength,
    Timeout,
    TokenFile,
    Url,
    read_token,
)
from nst_client.styles import Style, parse_style_weights
from nst_client.stylize.contact_sheet import contact_sheet, default_photograph, thumbnails
from nst_client.stylize.jobs import Job, Outcome, find_jobs, find_unreadable
from nst_client.stylize.processing import StylizeOptions
from nst_client.stylize.report import Report
from nst_client.stylize.runner import existing_outcome, run_jobs
from nst_client.stylize.stdio import STDIO, write_to_stdout
from nst_core.console import one_line_errors, progress, say
from nst_core.errors import InputError
from nst_core.images import (
    DEFAULT_MAX_PIXELS,
    WRITABLE_FORMATS,
    ImageData,
    image_format,
    open_image,
    save_image,
)
from nst_core.options import CommandLine
from nst_core.process import keep_freed_memory
from nst_core.shipped import shipped_styles


def stylize(
    contents: Annotated[
        list[str],
        typer.Argument(help="Images, folders, patterns such as '*.jpg', or - for stdin.", metavar="CONTENT"),
    ],
    style: Annotated[
        str,
        typer.Option(
            "--style",
            "-s",
            help="Style (nst styles lists them), or several with weights: great-wave:0.7,the-scream:0.3.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Image to write (.jpg, .png or .webp), folder for several images, or - for stdout.",
        ),
    ],
    url: Url = DEFAULT_URL,
    strength: Strength = 1.0,
    preserve_color: PreserveColor = False,
    max_side: MaxSide = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace files in the output folder."),
    ] = False,
    file_format: FileFormat = None,
    quality: Quality = 92,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    timeout: Timeout = 60.0,
    token_file: TokenFile = None,
    ca: CaFile = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", help="Number of images in parallel.", min=1, rich_help_panel=TUNING_PANEL)
    ] = 2,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print a line of JSON per image and a summary on stdout.",
            rich_help_panel=PROGRESS_PANEL,
        ),
    ] = False,
) -> None:
    """Stylize images, with a server or in this process.

    The output folder gets the same tree as a content folder. Images that are
    already stylized there with the same options are skipped, so the same
    command continues a run that was stopped. Metadata and colour profiles are
    kept.
    """
    with one_line_errors("local"):
        keep_freed_memory()
        if as_json and output == STDIO:
            raise InputError("--json and --output - both write to stdout; give one of them")
        suffix = f".{file_format.value}" if file_format else None
        options = StylizeOptions(parse_style_weights(style), strength, preserve_color, max_side, quality, max_pixels)
        found = find_jobs(contents, output, suffix)
        connection = {"timeout": timeout, "token": read_token(token_file), "ca": ca}
        existing = [] if overwrite else [outcome for job in found if (outcome := existing_outcome(job, options))]
        settled = {outcome.job for outcome in existing}
        remaining = [job for job in found if job not in settled]
        kind = WRITABLE_FORMATS.get(suffix or "")
        with (
            Report(options, len(found), find_unreadable(contents, output), as_json) as report,
            closing(_run_with_progress(remaining, options, kind, url, connection, jobs)) as outcomes,
        ):
            for outcome in chain(existing, outcomes):
                report.add(outcome)


def styles(
    url: Url = DEFAULT_URL,
    shipped: Annotated[
        bool, typer.Option("--shipped", help="List the styles that ship with nst, for nst export, without a server.")
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="File for a contact sheet: an image in each style, above its name (.jpg, .png or .webp).",
        ),
    ] = None,
    content: Annotated[Path | None, typer.Option(help="Content image of the sheet; by default a cat.")] = None,
    timeout: Timeout = 60.0,
    token_file: TokenFile = None,
    ca: CaFile = None,
) -> None:
    """List the styles of a server, or those that ship with nst."""
    if shipped:
        for ship in shipped_styles().values():
            write_to_stdout(f"{ship.name:<24}{ship}\n".encode())
        return
    with (
        one_line_errors("local"),
        StyleClient(url, timeout=timeout, retries=0, token=read_token(token_file), ca=ca) as client,
    ):
        if content and not sheet:
            raise InputError(f"--content {content} is only for a contact sheet; add --sheet styles.png")
        if sheet:
            image_format(sheet)
        offered = client.styles()
        for style in offered:
            write_to_stdout(f"{style.name}\n".encode())
        if not offered:
            raise InputError(f"{url} offers no style; load a model from nst export on it")
        if sheet:
            _save_sheet(sheet, client, offered, open_image(content) if content else default_photograph())


def _save_sheet(target: Path, client: StyleClient, offered: list[Style], content: ImageData) -> None:
    named = []
    with progress("styles", len(offered)) as update:
        for done, thumbnail in enumerate(thumbnails(client, offered, content)):
            named.append(thumbnail)
            update(done, "")
    save_image(contact_sheet(named), target)
    say(f"{target}  {len(offered)} style{'s' if len(offered) > 1 else ''}")


def _run_with_progress(
    jobs: list[Job], options: StylizeOptions, kind: str | None, url: str, connection: dict[str, Any], workers: int
) -> Generator[Outcome, None, None]:
    """Run the jobs and show progress: the tiles of a single image, or the images of several."""
    if len(jobs) == 1:
        with _tile_progress() as on_tile:
            yield from run_jobs(
                jobs,
                lambda job, client: options.stylize_file(job, client, kind, on_tile),
                lambda: StyleClient(url, **connection),
            )
    elif jobs:
        with StyleClient(url, **connection) as client:
            options.check(client)  # reports once and early what would fail for every image
        running = run_jobs(jobs, options.stylize_file, lambda: StyleClient(url, **connection, retries=RETRIES), workers)
        with progress("images", len(jobs)) as update, closing(running) as outcomes:
            for done, outcome in enumerate(outcomes, 1):
                yield outcome
                update(done, "")


@contextmanager
def _tile_progress() -> Iterator[OnTile]:
    """Yield a callback that shows progress from the first tile on; most images have no tiles."""
    with ExitStack() as stack:
        update: Callable[[int, str], None] | None = None

        def on_tile(done: int, total: int) -> None:
            nonlocal update
            update = update or stack.enter_context(progress("tiles", total))
            update(done, "")

        yield on_tile


stylize_app = CommandLine()
stylize_app.command()(stylize)
styles_app = CommandLine()
styles_app.command()(styles)
