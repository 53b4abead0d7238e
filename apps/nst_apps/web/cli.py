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

_LIMITS, _SECURITY, _TRAINING = "Visitor limits", "Security", "Training"

SHUTDOWN_GRACE_SECONDS = 2.0
"""Time for requests to finish when the page is stopped."""

FOLDER, YOUNG_SECONDS = "nst-web-", 60.0
"""Prefix of a folder with visitors' files, and its age before which its page may not have locked it yet."""


def web(
    url: Url = DEFAULT_URL,
    address: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.", min=0, max=65_535)] = 8080,
    gallery: Annotated[
        Path | None,
        typer.Option(help="Checkpoint to which visitors may add styles of their own.", rich_help_panel=_TRAINING),
    ] = None,
    repository: Annotated[
        Path, typer.Option(help="Model repository of the server, for trained styles.", rich_help_panel=_TRAINING)
    ] = Path("model_repository"),
    train: Annotated[
        str, typer.Option(help="Options of nst train for visitors' styles.", rich_help_panel=_TRAINING)
    ] = "--minutes 15",
    max_upload: Annotated[
        float, typer.Option(help="Maximum size of a file in MB.", min=0.01, rich_help_panel=_LIMITS)
    ] = 32,
    max_pixels: Annotated[
        int, typer.Option(help="Maximum pixels of an image.", min=256, rich_help_panel=_LIMITS)
    ] = 25_000_000,
    max_jobs: Annotated[
        int,
        typer.Option(
            help="Maximum images per visitor that are waiting or in progress.", min=1, rich_help_panel=_LIMITS
        ),
    ] = 4,
    public_name: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name of the page behind a proxy or in a network; repeatable.",
            envvar="NST_PUBLIC_NAME",
            rich_help_panel=_SECURITY,
        ),
    ] = None,
    timeout: Timeout = 60.0,
    token_file: TokenFile = None,
    ca: CaFile = None,
) -> None:
    """Serve a web page that stylizes images and the camera.

    The page answers only to localhost, IP addresses and each --public-name. With --gallery, visitors can also train
    styles of their own: nst train --add learns a style image, and nst export publishes the style. That needs the extra
    "export", and a server on this machine that serves --repository.
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
    """Create a folder for visitors' files, removed at the end; first remove those that killed pages left.

    A page locks its folder, which also keeps systemd from cleaning it up. Raises `InputError` if the folder cannot be
    created.
    """
    try:
        for old in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
            with suppress(OSError):
                _remove_left(old)
        temporary = tempfile.TemporaryDirectory(prefix=FOLDER, ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(
            f"cannot create a folder for the visitors' images ({error.strerror or error}); set TMPDIR to one with room"
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
    """Remove a folder of this user that no page has locked. Raises `OSError` otherwise."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(lock)
        if found.st_uid == os.getuid() and time.time() - found.st_ctime > YOUNG_SECONDS:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    finally:
        os.close(lock)


async def _serve(app: Application, address: str, port: int, stopped: asyncio.Event) -> None:
    """Serve until the event is set. Raises `InputError` if the page cannot listen."""
    from aiohttp.web import AppRunner, TCPSite

    shown = f"[{address}]" if ":" in address else address
    logger = logging.getLogger("nst_apps.web")
    logger.addFilter(_no_misshapen_request)
    runner = AppRunner(app, access_log=None, logger=logger, shutdown_timeout=SHUTDOWN_GRACE_SECONDS)
    await runner.setup()
    try:
        try:
            await TCPSite(runner, address, port).start()
        except (OSError, UnicodeError) as error:  # UnicodeError for invalid host names
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"cannot listen on {shown}:{port} ({reason}); choose another --port or --address"
            ) from None
        say(f"ready: http://{shown}:{runner.addresses[0][1]}")
        await stopped.wait()
        say("stopped")
    finally:
        await runner.cleanup()


def _no_misshapen_request(record: logging.LogRecord) -> bool:
    """Return whether to log a record; invalid HTTP requests would fill the terminal with tracebacks."""
    from aiohttp.http_exceptions import HttpProcessingError

    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


web_app = CommandLine()
web_app.command()(web)
