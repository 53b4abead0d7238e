"""`nst web`."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nst_client.client import AsyncStyleClient
from nst_client.options import DEFAULT_URL, CaFile, Timeout, TokenFile, Url, read_token
from nst_core.console import one_line_errors, say
from nst_core.errors import InputError
from nst_core.options import CommandLine
from nst_core.process import keep_freed_memory

if TYPE_CHECKING:
    from aiohttp.web import Application

_PAGE, _LIMITS, _TRAINING = "Page", "Limits of a visitor", "Training styles"

SHUTDOWN_GRACE_SECONDS = 2.0
"""Seconds that requests have to end when the page is stopped."""

FOLDER, YOUNG_SECONDS = "nst-web-", 60.0
"""How a folder of visitors' files begins, and seconds in which its page may not have locked it yet."""


def web(
    address: Annotated[
        str, typer.Option(help="Where it listens; 0.0.0.0 for everybody who reaches it.", rich_help_panel=_PAGE)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65_535, rich_help_panel=_PAGE)] = 8080,
    public_name: Annotated[
        list[str] | None,
        typer.Option(
            help="A name that browsers know it by, behind a proxy or in a network; localhost and addresses go without "
            "saying. May be given more than once.",
            envvar="NST_PUBLIC_NAME",
            rich_help_panel=_PAGE,
        ),
    ] = None,
    max_upload: Annotated[float, typer.Option(help="Largest file, megabytes.", min=0.01, rich_help_panel=_LIMITS)] = 32,
    max_pixels: Annotated[
        int, typer.Option(help="Largest image, pixels.", min=256, rich_help_panel=_LIMITS)
    ] = 25_000_000,
    max_jobs: Annotated[
        int, typer.Option(help="Images that may wait or be stylized at a time.", min=1, rich_help_panel=_LIMITS)
    ] = 4,
    gallery: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint that visitors may add styles of their own to; if not given, they cannot.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    repository: Annotated[
        Path, typer.Option(help="The model repository that the server serves.", rich_help_panel=_TRAINING)
    ] = Path("model_repository"),
    train: Annotated[
        str, typer.Option(help="How a style is trained: options of nst train.", rich_help_panel=_TRAINING)
    ] = "--minutes 15",
    url: Url = DEFAULT_URL,
    timeout: Timeout = 60.0,
    token_file: TokenFile = None,
    ca: CaFile = None,
) -> None:
    """Show a page that stylizes images and the camera in the styles of a server.

    With --gallery and --repository visitors train styles of their own: a style image is learned by nst train --add, and
    published by nst export. This needs the extra "export" and a server on this machine, with this repository.
    """
    with one_line_errors("web"):
        from nst_apps.web.app import Site, application
        from nst_apps.web.server import Server
        from nst_apps.web.studio import Limits, Studio
        from nst_apps.web.training import StyleTrainer

        keep_freed_memory()
        token = read_token(token_file)

        async def run() -> None:
            stopped = asyncio.Event()
            for sign in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(sign, stopped.set)
            with visitors_folder() as folder:
                server = Server(AsyncStyleClient(url, timeout=timeout, retries=0, token=token, ca=ca), say)
                trainer = StyleTrainer(server, gallery, repository, url, train, max_pixels, say) if gallery else None
                limits = Limits(int(max_upload * 1e6), max_pixels, max_jobs)
                site = Site(Studio(server, folder, limits), trainer)
                host = address.removeprefix("[").removesuffix("]")
                await _serve(application(site, public_name or (), host), host, port, stopped)

        asyncio.run(run())


@contextmanager
def visitors_folder() -> Iterator[Path]:
    """Yield a folder for visitors' files that goes at the end. Those that killed pages have left go now.

    A page holds the lock of its own, which also keeps systemd from cleaning it up. Raises `InputError` where none can
    be made.
    """
    try:
        for old in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
            with suppress(OSError):
                _remove_left(old)
        temporary = tempfile.TemporaryDirectory(prefix=FOLDER, ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(
            f"no folder for the visitors' images ({error.strerror or error}): set TMPDIR to one with room"
        ) from error
    with temporary as name:
        lock = os.open(name, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Path(name)
        finally:
            os.close(lock)


def _remove_left(folder: Path) -> None:
    """Remove a folder of this user's that no page has locked. Raises `OSError` otherwise."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(lock)
        if found.st_uid == os.getuid() and time.time() - found.st_ctime > YOUNG_SECONDS:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    finally:
        os.close(lock)


async def _serve(app: Application, address: str, port: int, stopped: asyncio.Event) -> None:
    """Until the event. Raises `InputError` where nobody may listen."""
    from aiohttp.web import AppRunner, TCPSite

    shown = f"[{address}]" if ":" in address else address
    logger = logging.getLogger("nst_apps.web")
    logger.addFilter(_no_misshapen_request)
    runner = AppRunner(app, access_log=None, logger=logger, shutdown_timeout=SHUTDOWN_GRACE_SECONDS)
    await runner.setup()
    try:
        try:
            await TCPSite(runner, address, port).start()
        except (OSError, UnicodeError) as error:  # the latter for what cannot be a host's name
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot listen on {shown}:{port} ({reason}): choose --port or --address") from None
        say(f"ready: http://{shown}:{runner.addresses[0][1]}")
        await stopped.wait()
        say("stopped")
    finally:
        await runner.cleanup()


def _no_misshapen_request(record: logging.LogRecord) -> bool:
    """Return whether to log: not that somebody sent what is no HTTP, which would fill the terminal with tracebacks."""
    from aiohttp.http_exceptions import HttpProcessingError

    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


web_app = CommandLine()
web_app.command()(web)
