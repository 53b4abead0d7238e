"""Options that several commands of `nst bench` share, and their defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nst_core.shipped import checkpoint_path

CHECKPOINT = Path("starry-night-fast")
"""The shipped style that is measured by default."""

GALLERY = checkpoint_path(Path("gallery"))
"""The shipped model of several styles."""

MODEL, REPOSITORY, TRITON = CHECKPOINT.stem, Path("model_repository"), Path(".triton")

Checkpoint = Annotated[
    Path,
    typer.Option(
        help="Checkpoint to measure (.pth), or the name of a shipped style; the served model has the same name.",
        callback=checkpoint_path,
    ),
]
Repository = Annotated[Path, typer.Option("--repository", "-r", help="Model repository that holds the exported style.")]
Model = Annotated[str, typer.Option(help="Name of the model to serve.")]
Width = Annotated[
    float | None,
    typer.Option(
        help="Serve an untrained Johnson network of this width instead; the weights do not change the speed.",
        min=0.1,
        rich_help_panel="Tuning",
    ),
]
Triton = Annotated[
    Path,
    typer.Option(
        "--triton",
        help="Folder to install Triton from PyPI into, unless tritonserver is in PATH.",
        rich_help_panel="Files",
    ),
]
Vgg = Annotated[
    Path | None,
    typer.Option(help="VGG-16 weights file; by default downloaded once.", rich_help_panel="Files"),
]
Photos = Annotated[
    Path | None,
    typer.Option(help="Folder of photographs that no style was trained on; by default the four that ship with nst."),
]
StyleImage = Annotated[
    Path | None,
    typer.Option(help="Style image of the checkpoint; without it, the speed-up at equal loss is not measured."),
]
