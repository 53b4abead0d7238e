"""`nst batch`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nst_client.errors import ServiceError
from nst_client.options import (
    PROGRESS_PANEL,
    RETRIES,
    CaFile,
    FileFormat,
    MaxPixels,
    MaxSide,
    PreserveColor,
    Quality,
    Strength,
    Timeout,
    TokenFile,
    read_token,
)
from nst_client.styles import parse_style_weights
from nst_client.stylize.processing import StylizeOptions
from nst_client.stylize.stdio import write_to_stdout
from nst_core.console import fail, one_line_errors, progress, say
from nst_core.errors import InputError
from nst_core.images import DEFAULT_MAX_PIXELS, unreadable_summary
from nst_core.options import CommandLine
from nst_core.process import keep_freed_memory

if TYPE_CHECKING:
    from nst_apps.batch.job import BatchJob
    from nst_apps.batch.manifest import Manifest
    from nst_apps.batch.workers import ConnectionSettings

LISTING_REPORT_SECONDS = 30
"""Time between two lines of progress while folders are listed."""


def batch(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of images and videos, or its URL: s3://bucket/photos, file:///photos.", metavar="INPUT"
        ),
    ],
    target: Annotated[str, typer.Argument(help="Output folder, or its URL.", metavar="OUTPUT")],
    style: Annotated[
        str,
        typer.Option(
            "--style",
            "-s",
            help="Style (nst styles lists them), or several with weights: great-wave:0.7,the-scream:0.3.",
        ),
    ],
    url: Annotated[
        str,
        typer.Option(
            "--url",
            "-u",
            help="Model repository to run in the workers (local:FOLDER), or a server as for nst stylize.",
            envvar="NST_URL",
        ),
    ] = "local:model_repository",
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-w", help="Number of workers; by default the number of CPUs.", min=1),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster, host:6379; by default Ray runs on this machine."),
    ] = None,
    strength: Strength = 1.0,
    preserve_color: PreserveColor = False,
    max_side: MaxSide = None,
    file_format: FileFormat = None,
    quality: Quality = 92,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    timeout: Timeout = 60.0,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the summary as a line of JSON on stdout.", rich_help_panel=PROGRESS_PANEL),
    ] = False,
) -> None:
    """Stylize folders and buckets on many cores or machines.

    Images and videos are distributed with Ray. Files that exist in OUTPUT are skipped, so the same command continues a
    run that was stopped. OUTPUT/nst-batch.jsonl lists the errors.
    """
    with one_line_errors("batch"):
        from nst_apps.batch.job import BatchJob
        from nst_apps.batch.manifest import Manifest
        from nst_apps.batch.storage import Folder
        from nst_apps.batch.workers import ConnectionSettings

        keep_freed_memory()
        suffix = f".{file_format.value}" if file_format else None
        options = StylizeOptions(parse_style_weights(style), strength, preserve_color, max_side, quality, max_pixels)
        job = BatchJob(Folder.at(source), Folder.at(target), options, suffix)
        connection = ConnectionSettings(url, {"timeout": timeout, "token": read_token(token_file), "ca": ca})
        begun = job.begin()
        with connection() as client:
            options.check(client)  # reports once and early what would fail for every image
        missing, existing = _list_work(job, begun)
        job.claim()
        manifest = Manifest(job.target, skipped=existing)
        try:
            fatal = _stylize_with_progress(job, missing, connection, address, workers, manifest) if missing else ""
        except KeyboardInterrupt:
            say(f"{manifest.stylized + existing} images are done; run the same command to continue")
            raise
        finally:
            rest = sum(map(len, missing)) - manifest.stylized - manifest.failed
            summary = manifest.end(missing=rest, unreadable=len(job.unreadable), command=options.command)
            if as_json:
                write_to_stdout(f"{json.dumps(summary)}\n".encode())
        _report(manifest, fatal, job.unreadable)


def _list_work(job: BatchJob, begun: bool) -> tuple[list[Any], int]:
    """Return the names of the missing files, an Arrow array per folder, and how many exist already."""
    import pyarrow as pa

    from nst_apps.batch.sections import Section

    names, existing, count, reported, has_sections = [], 0, 0, time.monotonic(), False
    for listing in job.listings(begun):
        has_sections |= any(map(Section.parse, listing.missing))
        if listing.missing:
            names.append(pa.array(listing.missing, pa.string()))
        existing, count = existing + listing.existing, count + len(listing.missing)
        if time.monotonic() - reported > LISTING_REPORT_SECONDS:
            reported = time.monotonic()
            say(f"listing: {count + existing} images so far")
    if not count and not existing:
        raise InputError(f"{job.source.url} has no images or videos; check INPUT")
    what = "images and sections of videos" if has_sections else "images"
    say(f"{count} {what} to stylize" + (f", {existing} exist already" if existing else ""))
    return names, existing


def _stylize_with_progress(
    job: BatchJob,
    names: list[Any],
    connection: ConnectionSettings,
    address: str | None,
    workers: int | None,
    manifest: Manifest,
) -> str:
    """Stylize with progress; returns the error that ended the run early, or an empty text."""
    from nst_apps.batch.cluster import cluster, keyboard_interrupts
    from nst_apps.batch.workers import stylize_all

    with keyboard_interrupts() as check_interrupt, cluster(address, workers) as cpus:
        count = workers or cpus
        options = {**connection.options, "retries": RETRIES}
        connect = replace(connection, threads=max(1, cpus // count), options=options)
        with (
            progress("images", sum(map(len, names))) as update,
            closing(stylize_all(job, names, connect, count, gpu=connection.wants_gpu)) as blocks,
        ):
            for block in blocks:
                check_interrupt()
                manifest.add(block)
                if block.fatal:
                    return block.fatal
                failures = f"  {manifest.failed} failed" if manifest.failed else ""
                update(manifest.stylized + manifest.failed, f"{manifest.rate:.1f} images/s{failures}")
    return ""


def _report(manifest: Manifest, fatal: str, unreadable: Sequence[Path]) -> None:
    """Print a summary; raise an error with the number of failed images, or the one that ended the run."""
    rate = f", {manifest.rate:.1f} images/s" if manifest.stylized else ""
    say(f"{manifest.stylized} stylized{rate}")
    if unreadable:
        say(unreadable_summary(unreadable))
    if fatal:
        raise ServiceError(f"{fatal}; then run the same command to continue")
    for error in manifest.first_errors:
        fail(InputError(error))
    if manifest.failed:
        total = manifest.stylized + manifest.skipped + manifest.failed
        raise InputError(
            f"{manifest.failed} of {total} images failed (see {manifest.path}); run the same command to retry them"
        )


batch_app = CommandLine()
batch_app.command()(batch)
