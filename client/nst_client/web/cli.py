"""`nst web`."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nst_client.cli import DEFAULT_URL, Authorities, Timeout, TokenFile, Url, token_of
from nst_client.client import AsyncStyleClient
from nst_core.console import one_line_errors, say
from nst_core.errors import InputError
from nst_core.memory import keep_freed_memory

if TYPE_CHECKING:
    from aiohttp.web import Application

_PAGE, _LIMITS, _MAKING = "Page", "Limits of a visitor", "Making styles"

GOODBYE = 2.0
"""Seconds that requests have to end when the page is stopped."""


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
        int, typer.Option(help="Largest picture, pixels.", min=256, rich_help_panel=_LIMITS)
    ] = 25_000_000,
    max_jobs: Annotated[
        int, typer.Option(help="Paintings that may wait or be made at a time.", min=1, rich_help_panel=_LIMITS)
    ] = 4,
    gallery: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint that visitors may add styles of their own to; if not given, they cannot.",
            rich_help_panel=_MAKING,
        ),
    ] = None,
    repository: Annotated[
        Path, typer.Option(help="The model repository that the server serves.", rich_help_panel=_MAKING)
    ] = Path("model_repository"),
    train: Annotated[
        str, typer.Option(help="How a style is learned: options of nst train.", rich_help_panel=_MAKING)
    ] = "--minutes 15",
    url: Url = DEFAULT_URL,
    timeout: Timeout = 60.0,
    token_file: TokenFile = None,
    ca: Authorities = None,
) -> None:
    """Show a page that paints pictures and the camera in the styles of a server.

    With --gallery and --repository visitors make styles of their own: a painting is learned by nst train --add, and
    published by nst export. This needs the extra "export" and a server on this machine, with this repository.
    """
    with one_line_errors("web"):
        from nst_client.web.app import Site, application
        from nst_client.web.making import Maker
        from nst_client.web.server import Server
        from nst_client.web.studio import Limits, Studio

        keep_freed_memory()
        token = token_of(token_file)

        async def run() -> None:
            with tempfile.TemporaryDirectory(prefix="nst-web-") as folder:
                server = Server(AsyncStyleClient(url, timeout=timeout, retries=0, token=token, ca=ca))
                maker = Maker(server, gallery, repository, url, train, max_pixels) if gallery else None
                limits = Limits(int(max_upload * 1e6), max_pixels, max_jobs)
                site = Site(Studio(server, Path(folder), limits), maker)
                await _serve(application(site, [address, *(public_name or ())]), address, port)

        asyncio.run(run())


async def _serve(app: Application, address: str, port: int) -> None:
    """Until Ctrl-C or SIGTERM. Raises `InputError` where nobody may listen."""
    from aiohttp.web import AppRunner, TCPSite

    stopped = asyncio.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sign, stopped.set)
    runner = AppRunner(app, access_log=None, shutdown_timeout=GOODBYE)
    await runner.setup()
    try:
        try:
            await TCPSite(runner, address, port).start()
        except OSError as error:
            raise InputError(
                f"cannot listen on {address}:{port} ({error.strerror or error}): choose --port or --address"
            ) from None
        say(f"ready: http://{address}:{runner.addresses[0][1]}")
        await stopped.wait()
        say("stopped")
    finally:
        await runner.cleanup()


web_app = typer.Typer(add_completion=False)
web_app.command()(web)
