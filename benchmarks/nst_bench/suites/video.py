"""Video against the in-process model: from a file to a file, to a window and to a web page, end to end.

A video that pans over photographs is decoded, stylized by Triton over gRPC and encoded as by `nst video`, played in
real time into a window as by `nst webcam`, and played as the camera of the page of `nst web` in Chromium, which draws
without a GPU. The in-process session stylizes the frames from memory, with the config's threads. They share the cores,
so they take turns.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from nst_bench.drawing.tables import list_of_rows
from nst_bench.drawing.words import shown
from nst_bench.engines.baseline import Baseline
from nst_bench.measure import summarize, timed
from nst_bench.served.resources import served_model
from nst_bench.served.server import ModelServer
from nst_bench.suite import Context, Document, Effort, Suite

BARE, FILE, WINDOW, PAGE = "bare session", "file to file", "file to window", "file to page"


@dataclass(frozen=True)
class VideoEffort(Effort):
    """The video's length, and the rounds of every way."""

    frames: Annotated[int, typer.Option(help="Length of the video in frames, at 30 frames/s.", min=16)] = 240
    rounds: int = 5


def measure(context: Context[VideoEffort], server: ModelServer) -> Document:
    """Measure video: to a file, to a window and to a web page.

    Stylizes 512 x 384 pixels end to end, and compares with the in-process model. Takes several minutes.
    """
    # All ways take turns in rounds; the window has no screen. The page gets as many seconds per round as the video
    # lasts. The share of the in-process rate is the median of the rounds' shares, as a machine's speed may change from
    # round to round.
    from nst_bench.served import video as ways  # needs the packages for video

    effort = context.effort
    bare, style, missing = Baseline(server.exported.folder), server.style, ways.missing_browser()
    seconds: dict[str, list[float]] = {way: [] for way in (BARE, FILE, WINDOW, *([] if missing else [PAGE]))}
    rates: dict[str, list[float]] = {way: [] for way in seconds}
    latencies: list[float] = []
    taken = 0

    def add(way: str, own: list[float], rate: float | None = None) -> None:
        seconds[way] += own
        rates[way].append(rate or len(own) / sum(own))

    with tempfile.TemporaryDirectory() as scratch:
        video = ways.write_video(Path(scratch) / "video.mp4", effort.frames)
        frames = ways.frames_of(video)
        ways.warm_up(server, bare.stylize, style, video)
        for number in range(1, effort.rounds + 1):
            add(BARE, [timed(partial(bare.stylize, pixels)) for pixels in frames])
            add(FILE, *ways.to_file(server, style, video))
            statistics, own = ways.to_window(server, style, video)
            add(WINDOW, own, statistics.mean_rate)
            latencies += statistics.latencies
            taken += statistics.taken
            if not missing:
                add(PAGE, ways.to_page(server, style, video, effort.frames / ways.RATE))
            now = ", ".join(f"{shown(way)} {by_round[-1]:.1f}" for way, by_round in rates.items())
            context.on_progress(f"round {number} of {effort.rounds}, frames/s: {now}")
    rows = [
        {
            "way": way,
            **asdict(summarize(own)),
            "frames_per_second": float(np.median(rates[way])),
            "share_of_bare": float(np.median(np.array(rates[way]) / rates[BARE])),
            "rounds": rates[way],
        }
        for way, own in seconds.items()
    ]
    rows += [{"way": PAGE, "missing": missing}] if missing else []
    rows.append({"way": f"{WINDOW}, latency", **asdict(summarize(latencies)), "shown": len(latencies), "taken": taken})
    size = {"width": ways.WIDTH, "height": ways.HEIGHT, "film_rate": ways.RATE}
    return {"model": {"name": server.model}, **size, "rows": rows}


SUITE = Suite(
    name="video",
    title="Video",
    resources=served_model,
    measure=measure,
    tables=list_of_rows,
    effort=VideoEffort(),
    extra="all",
)
