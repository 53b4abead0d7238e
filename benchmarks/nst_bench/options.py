"""The options that several commands of `nst-bench` have, and what they are if they are not given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CHECKPOINT = Path("models/starry-night-fast.pth")
"""The style that ships by default."""

GALLERY = CHECKPOINT.with_name("gallery.pth")
"""The shipped model of several styles."""

MODEL, REPOSITORY, TRITON = CHECKPOINT.stem, Path("model_repository"), Path(".triton")

Checkpoint = Annotated[Path, typer.Option(help="The style that is measured; its model bears the file's name.")]
Repository = Annotated[Path, typer.Option("--repository", "-r", help="Where nst-export put it.")]
Model = Annotated[str, typer.Option(help="The model that is served.")]
Width = Annotated[
    float | None,
    typer.Option(
        help="Serve Johnson's network of this width instead, exported with random weights, which take as long.", min=0.1
    ),
]
Triton = Annotated[Path, typer.Option("--triton", help="Where Triton from PyPI is, or goes.")]
Vgg = Annotated[Path | None, typer.Option(help="VGG-16's weights; fetched once if not given.")]
Photos = Annotated[
    Path | None,
    typer.Option(help="A folder of photographs that no style learned from; if not given, the four that ship."),
]
StyleImage = Annotated[
    Path | None, typer.Option(help="The style image that the network learned; without, losses are not compared.")
]
