"""What a video costs over the bare model: from a file to a file, to a window and to a page, all included.

A video of photographs that pass by is decoded, stylized by Triton over gRPC and encoded as `nst video` does it, played
in its own time into a window as `nst webcam` does it, and played in the camera's place to the page of `nst web` in
Chromium, which draws without a GPU. The bare session stylizes its frames from memory, with the config's threads.
They share the cores, so they take turns.
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
from nst_bench.engines.baseline import Baseline
from nst_bench.measure import summarize, timed
from nst_bench.served.resources import served_model
from nst_bench.served.server import ModelServer
from nst_bench.suite import Context, Document, Effort, Suite

BARE, FILE, WINDOW, PAGE = "bare session", "file to file", "file to window", "file to page"


@dataclass(frozen=True)
class VideoEffort(Effort):
    """The video, and in how many rounds it goes every way."""

    frames: Annotated[int, typer.Option(help="Of the video, 30 a second.", min=16)] = 240
    rounds: int = 5


def measure(context: Context[VideoEffort], server: ModelServer) -> Document:
    """Measure video: 512 x 384 from a file to a file, to a window and to the page, against the bare model.

    Takes some minutes.
    """
    # Every way in turn, in rounds; the window is a window without a screen. The page has as many seconds a round as the
    # frames last. The share of the bare rate is the median of the rounds' own shares: a machine may change its speed
    # from one round to the next.
    from nst_bench.served import video as ways  # it needs the packages of videos

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
            now = ", ".join(f"{way} {by_round[-1]:.1f}" for way, by_round in rates.items())
            context.on_progress(f"round {number} of {effort.rounds}, frames a second: {now}")
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
