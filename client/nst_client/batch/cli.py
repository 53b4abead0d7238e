"""`nst batch`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nst_client.errors import ServiceError
from nst_client.options import (
    RETRIES,
    STYLE_PANEL,
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
    silence_grpc,
)
from nst_client.styles import parse_style_weights
from nst_client.stylize.jobs import StylizeOptions, to_stdout
from nst_core.console import fail, one_line_errors, progress, say
from nst_core.errors import InputError
from nst_core.images import DEFAULT_MAX_PIXELS, unreadable_summary
from nst_core.memory import keep_freed_memory
from nst_core.options import CommandLine

if TYPE_CHECKING:
    from nst_client.batch.run import Batch, ConnectionSettings, Manifest

_WORKERS_PANEL = "Workers"


def batch(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of pictures and videos, or its URL: s3://bucket/photos, file:///photos.", metavar="INPUT"
        ),
    ],
    target: Annotated[str, typer.Argument(help="A folder, or its URL.", metavar="OUTPUT")],
    style: Annotated[
        str,
        typer.Option(
            "--style", "-s", help="A style, or a mix: great-wave:0.7,the-scream:0.3.", rich_help_panel=STYLE_PANEL
        ),
    ],
    strength: Strength = 1.0,
    preserve_color: PreserveColor = False,
    max_side: MaxSide = None,
    file_format: FileFormat = None,
    quality: Quality = 92,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-w", help="By default one for each CPU.", min=1, rich_help_panel=_WORKERS_PANEL),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Of a Ray cluster, host:6379; by default Ray runs in this machine.", rich_help_panel=_WORKERS_PANEL
        ),
    ] = None,
    url: Annotated[
        str,
        typer.Option(
            "--url",
            "-u",
            help="Where the model is: local:model_repository in the workers, or a server as for nst stylize.",
            envvar="NST_URL",
            rich_help_panel=_WORKERS_PANEL,
        ),
    ] = "local:model_repository",
    timeout: Timeout = 60.0,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as a line of JSON on stdout.")] = False,
) -> None:
    """Paint a folder or bucket of pictures and videos on many cores or machines, with Ray.

    What the output has is not painted again, so the same command goes on where it was stopped. What could not be
    painted stands in OUTPUT/nst-batch.jsonl, with the reason.
    """
    with one_line_errors("batch"):
        from nst_client.batch.run import Batch, ConnectionSettings, Manifest
        from nst_client.batch.storage import Folder

        keep_freed_memory()
        silence_grpc()
        suffix = f".{file_format.value}" if file_format else None
        recipe = StylizeOptions(parse_style_weights(style), strength, preserve_color, max_side, quality, max_pixels)
        job = Batch(Folder.at(source), Folder.at(target), recipe, suffix)
        access = ConnectionSettings(url, {"timeout": timeout, "token": read_token(token_file), "ca": ca})
        begun = job.begin()
        with access() as client:
            recipe.check(client)  # what is wrong for all of them is said once, and soon
        todo, there = _listed(job, begun)
        job.claim()
        manifest = Manifest(job.target, skipped=there)
        try:
            hopeless = _painted(job, todo, access, address, workers, manifest) if todo else ""
        except KeyboardInterrupt:
            say(f"{manifest.painted + there} pictures are painted; the same command goes on from there")
            raise
        finally:
            missing = sum(map(len, todo)) - manifest.painted - manifest.failed
            summary = manifest.end(missing=missing, unread=len(job.unread), style=recipe.record)
            if as_json:
                to_stdout(f"{json.dumps(summary)}\n".encode())
        _report(manifest, hopeless, job.unread)


def _listed(job: Batch, begun: bool) -> tuple[list[Any], int]:
    """What is to be painted, an Arrow array for each folder, and how many pictures are painted already."""
    import pyarrow as pa

    from nst_client.batch.sections import Section

    todo, there, count, said, sections = [], 0, 0, time.monotonic(), False
    for photos, painted in job.missing(begun):
        sections |= any(map(Section.of, photos))
        if photos:
            todo.append(pa.array(photos, pa.string()))
        there, count = there + painted, count + len(photos)
        if time.monotonic() - said > 30:
            said = time.monotonic()
            say(f"listing: {count + there} pictures so far")
    if not count and not there:
        raise InputError(f"{job.source.url}: no pictures or videos in it")
    what = "pictures and sections of videos" if sections else "pictures"
    say(f"{count} {what} to paint" + (f", {there} are painted already" if there else ""))
    return todo, there


def _painted(
    job: Batch,
    todo: list[Any],
    access: ConnectionSettings,
    address: str | None,
    workers: int | None,
    manifest: Manifest,
) -> str:
    """Paint with progress; the error that ended the run early, if one did."""
    from dataclasses import replace

    from nst_client.batch.run import cluster, heeding_interrupts, paint

    total, done = sum(map(len, todo)), 0
    with heeding_interrupts() as check, cluster(address, workers) as cpus:
        many = workers or cpus
        connect = replace(access, threads=max(1, cpus // many), options={**access.options, "retries": RETRIES})
        with (
            progress("pictures", total) as update,
            closing(paint(job, todo, connect, many, gpu=access.wants_gpu)) as blocks,
        ):
            for block in blocks:
                check()
                manifest.add(block)
                if block.hopeless:
                    return block.hopeless
                done = manifest.painted + manifest.failed
                update(
                    done, f"{manifest.rate:.1f} pictures/s" + (f"  {manifest.failed} failed" if manifest.failed else "")
                )
    return ""


def _report(manifest: Manifest, hopeless: str, unread: Sequence[Path]) -> None:
    """Say what was done; raise the number of those that failed, or the error that ended the run."""
    rate = f", {manifest.rate:.1f} pictures/s" if manifest.painted else ""
    say(f"{manifest.painted} painted{rate}")
    if unread:
        say(unreadable_summary(unread))
    if hopeless:
        raise ServiceError(f"{hopeless}; the same command goes on from there")
    for error in manifest.first:
        fail(InputError(error))
    if manifest.failed:
        total = manifest.painted + manifest.skipped + manifest.failed
        raise InputError(
            f"{manifest.failed} of {total} pictures failed: see {manifest.path}; the same command tries them again"
        )


batch_app = CommandLine()
batch_app.command()(batch)
