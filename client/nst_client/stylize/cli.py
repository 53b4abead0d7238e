"""`nst stylize` and `nst styles`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer

from nst_client.base_client import OnTile
from nst_client.client import StyleClient
from nst_client.options import (
    DEFAULT_URL,
    FILES_PANEL,
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
    Url,
    read_token,
    silence_grpc,
)
from nst_client.styles import Style, parse_style_weights
from nst_client.stylize.contact_sheet import contact_sheet, sample_photograph, thumbnails
from nst_client.stylize.jobs import (
    STDIO,
    Job,
    Outcome,
    StylizeOptions,
    jobs_of,
    painted,
    standing,
    to_stdout,
    unread_of,
)
from nst_core.console import fail, one_line_errors, progress, say
from nst_core.errors import InputError, NstError
from nst_core.images import (
    DEFAULT_MAX_PIXELS,
    WRITABLE_FORMATS,
    ImageData,
    image_format,
    open_image,
    save_image,
    unreadable_summary,
)
from nst_core.memory import keep_freed_memory
from nst_core.options import CommandLine


def stylize(
    photos: Annotated[
        list[str],
        typer.Argument(help="Pictures, folders of them, patterns, or - for one from stdin.", metavar="PHOTO..."),
    ],
    style: Annotated[
        str,
        typer.Option(
            "--style",
            "-s",
            help="A style that the server has (nst styles), or a mix: great-wave:0.7,the-scream:0.3.",
            rich_help_panel=STYLE_PANEL,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="A file (.jpg .png .webp), a folder for several pictures, or - for stdout.",
            rich_help_panel=FILES_PANEL,
        ),
    ],
    strength: Strength = 1.0,
    preserve_color: PreserveColor = False,
    max_side: MaxSide = None,
    file_format: FileFormat = None,
    quality: Quality = 92,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Paint again what the output folder has, and replace it.",
            rich_help_panel=FILES_PANEL,
        ),
    ] = False,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Pictures at a time.", min=1)] = 2,
    as_json: Annotated[
        bool, typer.Option("--json", help="A line of JSON on stdout for each picture, and a summary.")
    ] = False,
    url: Url = DEFAULT_URL,
    timeout: Timeout = 60.0,
    token_file: TokenFile = None,
    ca: CaFile = None,
) -> None:
    """Paint pictures in a style, by a server or in this process.

    A folder's tree is kept in the output folder. What is painted there
    already in the same way is skipped, so the same command goes on where
    it was stopped. Metadata and colour profiles are kept.
    """
    with one_line_errors("local"):
        keep_freed_memory()
        silence_grpc()
        if as_json and output == STDIO:
            raise InputError("--json and -o - both write to stdout: choose one")
        suffix = f".{file_format.value}" if file_format else None
        recipe = StylizeOptions(parse_style_weights(style), strength, preserve_color, max_side, quality, max_pixels)
        work = jobs_of(photos, output, suffix)
        access = {"timeout": timeout, "token": read_token(token_file), "ca": ca}
        known = [] if overwrite else [outcome for job in work if (outcome := standing(job, recipe))]
        settled = {outcome.job for outcome in known}
        todo = [job for job in work if job not in settled]
        kind = WRITABLE_FORMATS.get(suffix or "")
        with (
            _Report(recipe, len(work), unread_of(photos, output), as_json) as report,
            closing(_painted(todo, recipe, kind, url, access, jobs)) as new,
        ):
            for outcome in chain(known, new):
                report.add(outcome)


def styles(
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="Also paint a photograph in each style, and set them out with their names in this file "
            "(.jpg .png .webp).",
            rich_help_panel=STYLE_PANEL,
        ),
    ] = None,
    photo: Annotated[
        Path | None,
        typer.Option(help="The photograph of the sheet; if not given, a cat.", rich_help_panel=STYLE_PANEL),
    ] = None,
    url: Url = DEFAULT_URL,
    timeout: Timeout = 60.0,
    token_file: TokenFile = None,
    ca: CaFile = None,
) -> None:
    """List the styles that a server offers, and show them."""
    silence_grpc()
    with (
        one_line_errors("local"),
        StyleClient(url, timeout=timeout, retries=0, token=read_token(token_file), ca=ca) as client,
    ):
        if photo and not sheet:
            raise InputError("--photo is for the sheet, and there is none: give --sheet styles.png")
        if sheet:
            image_format(sheet)
        offered = client.styles()
        for style in offered:
            to_stdout(f"{style.name}\n".encode())
        if not offered:
            raise InputError(f"{url} offers no style")
        if sheet:
            _draw(sheet, client, offered, open_image(photo) if photo else sample_photograph())


def _draw(target: Path, client: StyleClient, offered: list[Style], photo: ImageData) -> None:
    named = []
    with progress("styles", len(offered)) as update:
        for done, one in enumerate(thumbnails(client, offered, photo)):
            named.append(one)
            update(done, "")
    save_image(contact_sheet(named), target)
    say(f"{target}: a photograph in {len(offered)} style{'s' if len(offered) > 1 else ''}")


def _painted(
    todo: list[Job], recipe: StylizeOptions, kind: str | None, url: str, access: dict[str, Any], jobs: int
) -> Generator[Outcome, None, None]:
    """Paint with progress: of the tiles of one picture, or of the pictures of many."""
    if len(todo) == 1:
        with _tiles() as on_tile:
            yield from painted(
                todo, lambda job, client: recipe.paint(job, client, kind, on_tile), lambda: StyleClient(url, **access)
            )
    elif todo:
        with StyleClient(url, **access) as client:
            recipe.check(client)  # what is wrong for all of them is said once, and soon
        new = painted(todo, recipe.paint, lambda: StyleClient(url, **access, retries=RETRIES), jobs)
        with progress("pictures", len(todo)) as update, closing(new) as outcomes:
            for done, outcome in enumerate(outcomes, 1):
                yield outcome
                update(done, "")


@contextmanager
def _tiles() -> Iterator[OnTile]:
    """Progress that appears with the first tile: most pictures have none."""
    with ExitStack() as stack:
        update: Callable[[int, str], None] | None = None

        def on_tile(done: int, total: int) -> None:
            nonlocal update
            update = update or stack.enter_context(progress("tiles", total))
            update(done, "")

        yield on_tile


class _Report:
    """Says what becomes of each picture, and at the end what failed and why."""

    def __init__(self, recipe: StylizeOptions, total: int, unread: list[Path], as_json: bool) -> None:
        self.recipe, self.total, self.unread, self.as_json = recipe, total, unread, as_json
        self.done: list[Outcome] = []
        self.started = time.perf_counter()

    def add(self, outcome: Outcome) -> None:
        self.done.append(outcome)
        photo, target = outcome.job.photo, outcome.job.target
        if self.as_json:
            self._line(
                input=str(photo),
                output=str(target),
                width=outcome.width or None,
                height=outcome.height or None,
                style=dict(self.recipe.style),
                milliseconds=round(outcome.milliseconds, 1) or None,
                skipped=outcome.skipped,
                error=self._reason(outcome),
            )
        elif not outcome.error and not outcome.skipped:
            say(f"{photo} -> {target}  {outcome.width}x{outcome.height}  {outcome.milliseconds:.0f} ms")

    def __enter__(self) -> _Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise the error of a single picture, or list those of many and raise their number."""
        failed = [one for one in self.done if one.error]
        skipped = sum(one.skipped for one in self.done)
        fine = len(self.done) - len(failed) - skipped
        if self.as_json and not isinstance(error, NstError | BrokenPipeError):
            seconds = round(time.perf_counter() - self.started, 3)
            self._line(painted=fine, skipped=skipped, failed=len(failed), unread=len(self.unread), seconds=seconds)
        if skipped:
            say(f"{skipped} of {self.total} pictures are painted already: skipped")
        if self.unread:
            say(unreadable_summary(self.unread))
        if isinstance(error, KeyboardInterrupt) and self.total > 1:
            say(f"{fine + skipped} of {self.total} pictures are painted; the same command goes on from there")
        if error or not failed:
            return
        if self.total == 1 and failed[0].error:
            raise failed[0].error
        for one in failed:
            if one.tried:
                fail(InputError(self._reason(one)))
        untried = sum(not one.tried for one in failed)
        rest = f", {untried} of them not tried" if untried else ""
        raise InputError(f"{len(failed)} of {self.total} pictures failed{rest}; the same command tries them again")

    def _reason(self, outcome: Outcome) -> str | None:
        """The error, with the picture's name if it lacks it."""
        if outcome.error is None:
            return None
        said = str(outcome.error)
        if not outcome.tried:
            said = f"not tried: {said}"
        return said if str(outcome.job.photo) in said else f"{outcome.job.photo}: {said}"

    def _line(self, **values: object) -> None:
        to_stdout(f"{json.dumps(values)}\n".encode())


stylize_app = CommandLine()
stylize_app.command()(stylize)
styles_app = CommandLine()
styles_app.command()(styles)
