"""What a video costs over the bare model: from a file to a file, and from a file to a window, all included.

A film of photographs that pass by is decoded, painted by Triton over gRPC and encoded as `nst video` does it, and
played in its own time into a window as `nst webcam` does it. The bare session paints the film's frames from memory,
with the config's threads. They share the cores, so they take turns.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nst_bench.engines import Bare, Served
from nst_bench.machine import header
from nst_bench.measure import summarize, timed
from nst_client import AsyncStyleClient, StyleClient
from nst_client.footage import Encoder, Footage, Format, Frame
from nst_client.schedule import Schedule
from nst_client.video import Plan, paint_video
from nst_client.webcam import Shot, Tally, Window, live, played
from nst_core.images import fitted, open_picture, sample_photographs

SCHEMA = "nst-bench-video/1"
WIDTH, HEIGHT = 512, 384
RATE = 30
"""Frames a second of the film."""

BARE, FILE, WINDOW = "bare session", "file to file", "file to window"


def measure(
    served: Served, *, frames: int = 120, rounds: int = 3, tick: Callable[[str], None] = lambda note: None
) -> dict[str, Any]:
    """`rounds` of `frames` frames by each way, in turn; a document. The window is one without a screen."""
    document, bare, style = header(SCHEMA), Bare(served.folder), served.style
    seconds: dict[str, list[float]] = {way: [] for way in (BARE, FILE, WINDOW)}
    whole: dict[str, list[float]] = {way: [] for way in seconds}
    latencies: list[float] = []
    taken = 0
    with tempfile.TemporaryDirectory() as scratch:
        film = filmed(Path(scratch) / "film.mp4", frames)
        pictures = [frame.pixels for frame in Footage(film).frames()]
        _warm(served, bare, style, film)
        for turn in range(1, rounds + 1):
            own = [timed(partial(bare.paint, pixels)) for pixels in pictures]
            seconds[BARE] += own
            whole[BARE].append(len(own) / sum(own))
            own, rate = _painted(served, style, film)
            seconds[FILE] += own
            whole[FILE].append(rate)
            tally, own = _shown(served, style, film)
            seconds[WINDOW] += own
            whole[WINDOW].append(tally.mean_rate)
            latencies += tally.latencies
            taken += tally.taken
            now = ", ".join(f"{way} {own[-1]:.1f}" for way, own in whole.items())
            tick(f"round {turn} of {rounds}, frames a second: {now}")
    rates = {way: float(np.median(own)) for way, own in whole.items()}
    rows = [
        {
            "way": way,
            **asdict(summarize(own)),
            "frames_per_second": rates[way],
            "share_of_bare": rates[way] / rates[BARE],
        }
        for way, own in seconds.items()
    ]
    rows.append({"way": f"{WINDOW}, latency", **asdict(summarize(latencies)), "shown": len(latencies), "taken": taken})
    return {
        **document,
        "model": {"name": served.model},
        "width": WIDTH,
        "height": HEIGHT,
        "film_rate": RATE,
        "rows": rows,
    }


def filmed(path: Path, frames: int) -> Path:
    """A film of the photographs that ship, each passing by as far as its share of the frames."""
    form = Format(WIDTH, HEIGHT, Fraction(1, 15_360), Fraction(RATE))
    photographs = sample_photographs()
    share = -(-frames // len(photographs))
    with Encoder(path, form, "h264", container="mp4") as encoder:
        for number in range(frames):
            if number % share == 0:
                wide = fitted(open_picture(photographs[number // share]), WIDTH + 2 * share, HEIGHT).pixels
            left = 2 * (number % share)
            pixels = np.ascontiguousarray(wide[:, left : left + WIDTH])
            encoder.add(Frame(pixels, number * 15_360 // RATE))
    return path


def _warm(served: Served, bare: Bare, style: str, film: Path) -> None:
    """The first pictures of a shape are another figure."""
    first = next(Footage(film).frames()).pixels
    with StyleClient(served.endpoints.grpc) as client:
        for _ in range(3):
            client.stylize(first, style)
            bare.paint(first)


def _painted(served: Served, style: str, film: Path) -> tuple[list[float], float]:
    """Seconds from each frame to the next, and frames a second from the start to the file that is whole."""
    moments: list[float] = []
    target = film.with_name("painted.mp4")
    started = time.perf_counter()
    result = paint_video(
        *(film, target, Plan(Schedule.of(style))),
        lambda: AsyncStyleClient(served.endpoints.grpc),
        on_frame=lambda done, total: moments.append(time.perf_counter()),
    )
    rate = result.frames / (time.perf_counter() - started)
    target.unlink()
    return np.diff(moments).tolist(), rate


def _shown(served: Served, style: str, film: Path) -> tuple[Tally, list[float]]:
    """The film in its own time in a window, and the seconds from each frame that is shown to the next."""
    moments: list[float] = []
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    with StyleClient(served.endpoints.grpc) as client, closing(Window("nst-bench video")) as window:

        def show(shot: Shot | None, tally: Tally) -> bool:
            window.keys()
            if shot is not None:
                window.show(shot.pixels, f"{tally.rate:.1f} frames/s")
                moments.append(time.perf_counter())
            return True

        tally = live(played(film, None), lambda pixels: client.stylize(pixels, style), show)
    return tally, np.diff(moments).tolist()
