"""`make demo`: the whole way, from the shipped checkpoints to pictures, a server and a figure.

Exports `models/starry-night-fast.pth` and `models/gallery.pth`, starts Triton on free ports, shows all their styles on
one sheet, paints two photographs in some of them and in a mix over gRPC, and over HTTP, measures the first against
Gatys' optimisation, and leaves `demo/` and no process behind.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import typer

from nst_bench import report
from nst_bench.commands import CHECKPOINT, GALLERY
from nst_client.stylize.contact_sheet import contact_sheet
from nst_core.console import duration, one_line_errors, say
from nst_core.images import Pixels, fit, open_image, sample_photographs, save_image
from nst_server import triton

FOLDER = Path("demo")
HTTP = FOLDER / "painted" / "over-http"

PHOTOGRAPHS = ("chelsea.jpg", "rocket.jpg")
LOOKS = (CHECKPOINT.stem, "great-wave", "composition-vii", "udnie", "the-scream", "great-wave:0.5,udnie:0.5")
SHOWN = 300, 200
"""Pixels of a picture among the others, width and height."""


def main() -> None:
    """Run the commands as a user would type them, saying each."""
    with one_line_errors("bench"):
        started = time.monotonic()
        shutil.rmtree(FOLDER, ignore_errors=True)
        repository = FOLDER / "model_repository"
        _run("nst-export", str(CHECKPOINT), str(GALLERY), "-r", str(repository))
        _paint(repository)
        measured = _run(
            *("nst-bench", "--short", "--checkpoint", str(CHECKPOINT), "-r", str(repository), "-o", str(FOLDER))
        )
        say("")
        say(f"{FOLDER / 'styles.png'}: every style that Triton served")
        say(f"{FOLDER / 'pictures.png'}: photographs, and what Triton made of them")
        say(f"{FOLDER / 'report.html'}: {report.headline(json.loads(measured.splitlines()[-1]))}")
        say(f"done in {duration(time.monotonic() - started)}")


def _paint(repository: Path) -> None:
    """Two photographs in every look over gRPC, in the first over HTTP too: the two answers must be the same."""
    endpoints = triton.Endpoints.free()
    photos = [path for path in sample_photographs() if path.name in PHOTOGRAPHS]
    with triton.running(triton.find(Path(".triton"), say), repository, endpoints, FOLDER / "triton.log", on_error=say):
        _run("nst", "styles", "--url", endpoints.grpc, "--sheet", str(FOLDER / "styles.png"))
        for style in LOOKS:
            _stylize(photos, style, endpoints.grpc, _folder(style))
        _stylize(photos, LOOKS[0], endpoints.http, HTTP)
    rows: list[tuple[str, Pixels]] = []
    for photo in photos:
        painted = [open_image(_folder(style) / f"{photo.stem}.png") for style in LOOKS]
        if not np.array_equal(painted[0].pixels, open_image(HTTP / f"{photo.stem}.png").pixels):
            raise triton.ServerError(f"{photo.name}: gRPC and HTTP gave different pictures")
        names = ["photograph", *(style.replace(",", " ") for style in LOOKS)]
        shown = [fit(picture, *SHOWN).pixels for picture in (open_image(photo), *painted)]
        rows += zip(names, shown, strict=True)
    save_image(contact_sheet(rows, 1 + len(LOOKS)), FOLDER / "pictures.png")


def _stylize(photos: list[Path], style: str, url: str, folder: Path) -> None:
    """All photographs by one command; as PNG, so that paintings can be compared."""
    options = ("--style", style, "--format", "png", "--url", url, "-o", str(folder))
    _run("nst", "stylize", *map(str, photos), *options)


def _folder(style: str) -> Path:
    """Where the paintings in a style or a mix go."""
    return FOLDER / "painted" / style.translate(str.maketrans(":,/", "-+-"))


def _run(*command: str) -> str:
    """A command of this environment; its messages are the user's to see, its stdout is returned."""
    name, *arguments = command
    shown = [argument if "/photographs/" not in argument else Path(argument).name for argument in arguments]
    say(f"$ {name} {' '.join(shown)}")
    result = subprocess.run(
        [str(Path(sys.executable).parent / name), *arguments], stdout=subprocess.PIPE, encoding="utf-8"
    )
    if result.returncode:
        raise typer.Exit(result.returncode)  # it has said why
    return result.stdout


if __name__ == "__main__":
    main()
