"""`make demo`: the whole way, from the shipped checkpoint to a picture, a server and a figure.

Exports `models/starry-night.pth`, starts Triton on free ports, paints two photographs over gRPC
and HTTP, measures against Gatys' optimisation, and leaves `demo/` and no process behind.
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
from nst_core.console import duration, one_line_errors, say
from nst_core.images import Picture, open_picture, sample_photographs, save_picture, side_by_side
from nst_server import triton

CHECKPOINT = Path("models/starry-night.pth")
FOLDER = Path("demo")
PHOTOGRAPHS = ("chelsea.jpg", "rocket.jpg")


def main() -> None:
    """Run the commands as a user would type them, saying each."""
    with one_line_errors("bench"):
        started = time.monotonic()
        shutil.rmtree(FOLDER, ignore_errors=True)
        repository = FOLDER / "model_repository"
        _run("nst-export", str(CHECKPOINT), "-r", str(repository))
        _paint(repository)
        measured = _run(
            *("nst-bench", "--short", "--checkpoint", str(CHECKPOINT), "-r", str(repository), "-o", str(FOLDER))
        )
        say("")
        say(f"{FOLDER / 'pictures.png'}: photographs, and what Triton made of them")
        say(f"{FOLDER / 'report.html'}: {report.headline(json.loads(measured.splitlines()[-1]))}")
        say(f"done in {duration(time.monotonic() - started)}")


def _paint(repository: Path) -> None:
    """Two photographs by two protocols; the two answers to one photograph must be the same."""
    endpoints = triton.Endpoints.free()
    rows = []
    with triton.running(triton.find(Path(".triton"), say), repository, endpoints, FOLDER / "triton.log", on_error=say):
        for photo in (path for path in sample_photographs() if path.name in PHOTOGRAPHS):
            row = [open_picture(photo).pixels]
            for url in (endpoints.grpc, endpoints.http):
                target = FOLDER / f"{photo.stem}-{url.partition(':')[0]}.png"
                _run("nst", "stylize", str(photo), "--style", CHECKPOINT.stem, "--url", url, "-o", str(target))
                row.append(open_picture(target).pixels)
            if not np.array_equal(row[1], row[2]):
                raise triton.ServerError(f"{photo.name}: gRPC and HTTP gave different pictures")
            rows.append(side_by_side(row[:2]))
    save_picture(Picture(_stacked(rows)), FOLDER / "pictures.png")


def _stacked(rows: list[np.ndarray]) -> np.ndarray:
    """Rows under each other, narrower ones filled up with white on the right."""
    widest = max(row.shape[1] for row in rows)
    filled = [np.pad(row, ((0, 8), (0, widest - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate(filled)[:-8]


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
