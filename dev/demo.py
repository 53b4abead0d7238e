"""`make demo`: from the shipped checkpoints to stylized images, a server and a measured speed-up.

Exports `models/starry-night-fast.pth` and `models/gallery.pth`, starts Triton on free ports, shows all styles on one
sheet, stylizes two photographs in some styles and an interpolation over gRPC and HTTP, measures the speed-up over
Gatys' optimisation, and stops the server. The results are in `demo/`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from nst_bench.report import headline
from nst_client.stylize.contact_sheet import contact_sheet
from nst_core.console import duration, one_line_errors, say
from nst_core.images import Pixels, fit, open_image, sample_photographs, save_image
from nst_server.endpoints import Endpoints
from nst_server.errors import ServerError
from nst_server.installation.triton import find_triton
from nst_server.process.supervisor import run_triton

CHECKPOINTS = (Path("models/starry-night-fast.pth"), Path("models/gallery.pth"))
FOLDER = Path("demo")
OVER_HTTP = FOLDER / "stylized" / "over-http"
PHOTOGRAPHS = ("chelsea.jpg", "rocket.jpg")
STYLES = ("starry-night-fast", "great-wave", "composition-vii", "udnie", "the-scream", "great-wave:0.5,udnie:0.5")
THUMBNAIL_PIXELS = 300, 200
"""Width and height of an image on the sheet."""


def main() -> None:
    """Run the commands as a user types them, and print them."""
    with one_line_errors("bench"):
        started = time.monotonic()
        shutil.rmtree(FOLDER, ignore_errors=True)
        repository = FOLDER / "model_repository"
        run("nst", "export", *map(str, CHECKPOINTS), "-r", str(repository))
        stylize_photographs(repository)
        checkpoint = str(CHECKPOINTS[0])
        results = run("nst", "bench", "--short", "--checkpoint", checkpoint, "-r", str(repository), "-o", str(FOLDER))
        say("")
        say(f"{FOLDER / 'styles.png'}: all served styles")
        say(f"{FOLDER / 'pictures.png'}: photographs and their stylized images")
        say(f"{FOLDER / 'report.html'}: {headline(json.loads(results.splitlines()[-1]))}")
        say(f"done in {duration(time.monotonic() - started)}")


def stylize_photographs(repository: Path) -> None:
    """Stylize two photographs in every style over gRPC, and in the first over HTTP; the results must be equal."""
    endpoints = Endpoints.free()
    photographs = [path for path in sample_photographs() if path.name in PHOTOGRAPHS]
    with run_triton(find_triton(Path(".triton"), say), repository, endpoints, FOLDER / "triton.log", on_error=say):
        run("nst", "styles", "--url", endpoints.grpc, "--sheet", str(FOLDER / "styles.png"))
        for style in STYLES:
            stylize(photographs, style, endpoints.grpc, folder_of(style))
        stylize(photographs, STYLES[0], endpoints.http, OVER_HTTP)
    thumbnails: list[tuple[str, Pixels]] = []
    for photograph in photographs:
        stylized = [open_image(folder_of(style) / f"{photograph.stem}.png") for style in STYLES]
        if not np.array_equal(stylized[0].pixels, open_image(OVER_HTTP / f"{photograph.stem}.png").pixels):
            raise ServerError(f"{photograph.name}: gRPC and HTTP returned different images")
        names = ["photograph", *(style.replace(",", " ") for style in STYLES)]
        images = [open_image(photograph), *stylized]
        thumbnails += zip(names, [fit(image, *THUMBNAIL_PIXELS).pixels for image in images], strict=True)
    save_image(contact_sheet(thumbnails, 1 + len(STYLES)), FOLDER / "pictures.png")


def stylize(photographs: list[Path], style: str, url: str, folder: Path) -> None:
    """Stylize all photographs with one command, as PNG, so that images can be compared."""
    options = ("--style", style, "--format", "png", "--url", url, "-o", str(folder))
    run("nst", "stylize", *map(str, photographs), *options)


def folder_of(style: str) -> Path:
    """Return the folder for the images of a style or an interpolation."""
    return FOLDER / "stylized" / style.translate(str.maketrans(":,/", "-+-"))


def run(name: str, *arguments: str) -> str:
    """Run a command and return its stdout; its messages are shown, and its failure ends the demo."""
    shown = [Path(argument).name if "/photographs/" in argument else argument for argument in arguments]
    say(f"$ {name} {' '.join(shown)}")
    command = [str(Path(sys.executable).parent / name), *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8")
    if result.returncode:
        sys.exit(result.returncode)  # the command has printed the reason
    return result.stdout


if __name__ == "__main__":
    main()
