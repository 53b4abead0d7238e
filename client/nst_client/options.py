"""Options that several of the client's commands share: the server, and how images are stylized and written."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nst_core.contract import Variable
from nst_core.errors import InputError

DEFAULT_URL = "grpc://127.0.0.1:8001"

RETRIES = 20
"""Retries of a command with many requests, within its timeout: a server that restarts loses none of them."""

STYLE_PANEL, FILES_PANEL, SERVER_PANEL = "Style", "Files", "Server"
"""Headings of the options in the help."""

Url = Annotated[
    str,
    typer.Option(
        "--url",
        "-u",
        help="grpc:// or grpcs://host:8001[,host:8001], http:// or https://host:8000, or local:model_repository.",
        envvar=Variable.URL,
        rich_help_panel=SERVER_PANEL,
    ),
]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for an answer.", min=0.001, rich_help_panel=SERVER_PANEL)]
TokenFile = Annotated[
    Path | None,
    typer.Option(help="File with the server's token; or set NST_TOKEN.", rich_help_panel=SERVER_PANEL),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        help="PEM file of the certificates to trust, instead of the system's.",
        envvar=Variable.CA,
        rich_help_panel=SERVER_PANEL,
    ),
]


class Format(StrEnum):
    """A format that images are written in."""

    jpg = "jpg"
    png = "png"
    webp = "webp"


Strength = Annotated[
    float,
    typer.Option(
        help="How much of the stylized image; the rest is the content image.",
        min=0.0,
        max=1.0,
        rich_help_panel=STYLE_PANEL,
    ),
]
PreserveColor = Annotated[
    bool, typer.Option("--preserve-color", help="Keep the content image's colours.", rich_help_panel=STYLE_PANEL)
]
MaxSide = Annotated[
    int | None,
    typer.Option(help="Shrink a larger image to this longer side, pixels.", min=16, rich_help_panel=STYLE_PANEL),
]
FileFormat = Annotated[
    Format | None,
    typer.Option(
        "--format",
        help="Of the stylized images; by default the content image's, JPEG for HEIC and AVIF.",
        rich_help_panel=FILES_PANEL,
    ),
]
Quality = Annotated[int, typer.Option(help="Of JPEG and WebP.", min=1, max=100, rich_help_panel=FILES_PANEL)]
MaxPixels = Annotated[
    int, typer.Option(help="Refuse to decode an image of more pixels.", min=1, rich_help_panel=FILES_PANEL)
]


def read_token(file: Path | None) -> str | None:
    """The token in a file or the environment. An option with the token itself would show in the list of processes."""
    if file is None:
        return os.environ.get(Variable.TOKEN) or None
    try:
        token = file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the token in {file}: {getattr(error, 'strerror', None) or error}") from error
    if not token:
        raise InputError(f"{file} is empty: it should hold the server's token")
    return token
