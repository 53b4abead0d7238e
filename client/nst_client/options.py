"""Options that several commands share: the server, and how images are stylized and written."""

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
"""Retries per request of commands with many, within the timeout, so that a restart of the server loses none."""

IMAGE_PANEL, SERVER_PANEL, TUNING_PANEL, PROGRESS_PANEL = "Image", "Server", "Tuning", "Progress"
"""Panels of `--help`; the options that most people need are in none of them."""

Url = Annotated[
    str,
    typer.Option(
        "--url",
        "-u",
        help="Server (grpc[s]://host:8001, http[s]://host:8000), or local:model_repository without one.",
        envvar=Variable.URL,
    ),
]
Timeout = Annotated[
    float,
    typer.Option(help="Timeout per request in seconds, retries included.", min=0.001, rich_help_panel=SERVER_PANEL),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the server's token; NST_TOKEN may hold the token instead.", rich_help_panel=SERVER_PANEL
    ),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        help="PEM file of the certificates to trust instead of the system's.",
        envvar=Variable.CA,
        rich_help_panel=SERVER_PANEL,
    ),
]


class Format(StrEnum):
    """A file format for stylized images."""

    jpg = "jpg"
    png = "png"
    webp = "webp"


Strength = Annotated[
    float,
    typer.Option(help="Blend between the content image (0) and the stylized image (1).", min=0.0, max=1.0),
]
PreserveColor = Annotated[bool, typer.Option("--preserve-color", help="Keep the colours of the content image.")]
MaxSide = Annotated[int | None, typer.Option(help="Shrink larger images to this longer side in pixels.", min=16)]
FileFormat = Annotated[
    Format | None,
    typer.Option(
        "--format",
        help="Format of the stylized images; by default the content image's, or JPEG for HEIC and AVIF.",
        rich_help_panel=IMAGE_PANEL,
    ),
]
Quality = Annotated[int, typer.Option(help="JPEG and WebP quality.", min=1, max=100, rich_help_panel=IMAGE_PANEL)]
MaxPixels = Annotated[
    int,
    typer.Option(
        help="Maximum pixels of a content image; larger ones are refused.", min=1, rich_help_panel=IMAGE_PANEL
    ),
]


def read_token(file: Path | None) -> str | None:
    """Return the token from a file or from the environment; None without either.

    There is no option for the token itself, since the list of processes would show it. Raises `InputError`.
    """
    if file is None:
        return os.environ.get(Variable.TOKEN) or None
    try:
        token = file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the token in {file} ({getattr(error, 'strerror', None) or error}); check --token-file"
        ) from error
    if not token:
        raise InputError(f"{file} is empty; write the server's token into it")
    return token
