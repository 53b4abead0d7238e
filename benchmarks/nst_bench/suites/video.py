"""What a video costs over the bare model: from a file to a file, to a window and to a page, all included.

A film of photographs that pass by is decoded, painted by Triton over gRPC and encoded as `nst video` does it, played
in its own time into a window as `nst webcam` does it, and played in the camera's place to the page of `nst web` in
Chromium, which draws without a GPU. The bare session paints the film's frames from memory, with the config's threads.
They share the cores, so they take turns.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from av import VideoFrame

from nst_bench.engines.bare import BareModel
from nst_bench.machine.description import document_header
from nst_bench.measure import summarize, timed
from nst_bench.served.server import ModelServer
from nst_client import AsyncStyleClient, StyleClient
from nst_client.video.codec.decoder import VideoSource
from nst_client.video.codec.encoder import Encoder
from nst_client.video.codec.formats import Frame, VideoFormat
from nst_client.video.schedule import Schedule
from nst_client.video.settings import VideoSettings
from nst_client.video.stylize import stylize_video
from nst_client.video.webcam import LiveFrame, LiveStatistics, Window, file_frames, show_live
from nst_core.distribution import install_command
from nst_core.errors import NstError
from nst_core.images import fit, open_image, sample_photographs

SCHEMA = "nst-bench-video/1"
WIDTH, HEIGHT = 512, 384
RATE = 30
"""Frames a second of the film."""

BARE, FILE, WINDOW, PAGE = "bare session", "file to file", "file to window", "file to page"

CAMERA = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", "--use-file-for-fake-video-capture=")
"""How Chromium takes a file for its camera, without asking."""

PATIENCE = 120_000
"""Milliseconds that the page may take to begin."""

COUNTED = """
  const drawn = CanvasRenderingContext2D.prototype.drawImage;
  window.moments = [];
  CanvasRenderingContext2D.prototype.drawImage = function (...given) {
    drawn.apply(this, given);
    if (this.canvas.id === "canvas") moments.push(performance.now());
  };
"""
"""The moments at which the page shows a painted frame."""

THUMBNAILED = """() => {
  const styles = [...document.querySelectorAll("#styles button")];
  return styles.length && styles.every((style) => style.querySelector("img"));
}"""
"""Whether the server is done with the page's thumbnails."""


def measure(
    served: ModelServer, *, frames: int = 240, rounds: int = 5, on_progress: Callable[[str], None] = lambda note: None
) -> dict[str, Any]:
    """`rounds` of `frames` frames by each way, in turn; a document. The window is one without a screen.

    The page has as many seconds a round as the frames last. Where there is no browser it is missing. The share of the
    bare rate is the median of the rounds' own shares: a machine may change its speed from one round to the next.
    """
    document, bare, style = document_header(SCHEMA), BareModel(served.exported.folder), served.style
    missing = _without_browser()
    seconds: dict[str, list[float]] = {way: [] for way in (BARE, FILE, WINDOW, *([] if missing else [PAGE]))}
    whole: dict[str, list[float]] = {way: [] for way in seconds}
    latencies: list[float] = []
    taken = 0
    with tempfile.TemporaryDirectory() as scratch:
        film = filmed(Path(scratch) / "film.mp4", frames)
        pictures = [frame.pixels for frame in VideoSource(film).frames()]
        _warm(served, bare, style, film)
        for turn in range(1, rounds + 1):
            own = [timed(partial(bare.stylize, pixels)) for pixels in pictures]
            seconds[BARE] += own
            whole[BARE].append(len(own) / sum(own))
            own, rate = _painted(served, style, film)
            seconds[FILE] += own
            whole[FILE].append(rate)
            statistics, own = _shown(served, style, film)
            seconds[WINDOW] += own
            whole[WINDOW].append(statistics.mean_rate)
            latencies += statistics.latencies
            taken += statistics.taken
            if not missing:
                own = _paged(served, style, film, frames / RATE)
                seconds[PAGE] += own
                whole[PAGE].append(len(own) / sum(own))
            now = ", ".join(f"{way} {own[-1]:.1f}" for way, own in whole.items())
            on_progress(f"round {turn} of {rounds}, frames a second: {now}")
    rates = {way: np.array(own) for way, own in whole.items()}
    rows = [
        {
            "way": way,
            **asdict(summarize(own)),
            "frames_per_second": float(np.median(rates[way])),
            "share_of_bare": float(np.median(rates[way] / rates[BARE])),
            "rounds": rates[way].tolist(),
        }
        for way, own in seconds.items()
    ]
    rows += [{"way": PAGE, "missing": missing}] if missing else []
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
    form = VideoFormat(WIDTH, HEIGHT, Fraction(1, 15_360), Fraction(RATE))
    photographs = sample_photographs()
    share = -(-frames // len(photographs))
    with Encoder(path, form, "h264", container="mp4") as encoder:
        for number in range(frames):
            if number % share == 0:
                wide = fit(open_image(photographs[number // share]), WIDTH + 2 * share, HEIGHT).pixels
            left = 2 * (number % share)
            pixels = np.ascontiguousarray(wide[:, left : left + WIDTH])
            encoder.add(Frame(pixels, number * 15_360 // RATE))
    return path


def _warm(served: ModelServer, bare: BareModel, style: str, film: Path) -> None:
    """The first pictures of a shape are another figure."""
    first = next(VideoSource(film).frames()).pixels
    with StyleClient(served.endpoints.grpc) as client:
        for _ in range(3):
            client.stylize(first, style)
            bare.stylize(first)


def _painted(served: ModelServer, style: str, film: Path) -> tuple[list[float], float]:
    """Seconds from each frame to the next, and frames a second from the start to the file that is whole."""
    moments: list[float] = []
    target = film.with_name("painted.mp4")
    started = time.perf_counter()
    result = stylize_video(
        *(film, target, VideoSettings(Schedule.of(style))),
        lambda: AsyncStyleClient(served.endpoints.grpc, shared_memory=None),
        on_progress=lambda done, total: moments.append(time.perf_counter()),
    )
    rate = result.frames / (time.perf_counter() - started)
    target.unlink()
    return np.diff(moments).tolist(), rate


def _shown(served: ModelServer, style: str, film: Path) -> tuple[LiveStatistics, list[float]]:
    """The film in its own time in a window, and the seconds from each frame that is shown to the next."""
    moments: list[float] = []
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    with StyleClient(served.endpoints.grpc, shared_memory=None) as client, closing(Window("nst-bench video")) as window:

        def show(frame: LiveFrame | None, statistics: LiveStatistics) -> bool:
            window.keys()
            if frame is not None:
                window.show(frame.pixels, f"{statistics.rate:.1f} frames/s")
                moments.append(time.perf_counter())
            return True

        statistics = show_live(file_frames(film, None), lambda pixels: client.stylize(pixels, style), show)
    return statistics, np.diff(moments).tolist()


def _without_browser() -> str | None:
    """Why there is no page here."""
    if not find_spec("playwright"):
        return f"no playwright here: {install_command('dev')}"
    return None if shutil.which("chromium") else "no chromium here: apt-get install chromium"


def _paged(served: ModelServer, style: str, film: Path, duration: float) -> list[float]:
    """The film as the camera of the page, and the seconds from each painted frame that it shows to the next."""
    from playwright.sync_api import sync_playwright

    camera = _raw(film)
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", *CAMERA[:-1], f"{CAMERA[-1]}{camera}"]
    with _site(served.endpoints.grpc) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.add_init_script(COUNTED)
        page.goto(url)
        page.wait_for_function(THUMBNAILED)
        page.click(f"[data-style='{style}']")
        page.click("#camera")
        page.wait_for_function("() => moments.length > 4")  # the first are another figure
        page.evaluate("moments.length = 0")
        page.wait_for_timeout(1000 * duration)
        page.wait_for_function("() => moments.length > 2")
        moments = page.evaluate("moments")
        sides = page.evaluate("""() => {
          const canvas = document.getElementById("canvas");
          return [canvas.width, canvas.height];
        }""")
        browser.close()
    if sides != [WIDTH, HEIGHT]:
        raise NstError(f"the page painted frames of {sides}, not of {WIDTH} x {HEIGHT}")
    seconds: list[float] = (np.diff(moments) / 1000).tolist()
    return seconds


@contextmanager
def _site(url: str) -> Iterator[str]:
    """The address of a page of its own process."""
    nst = str(Path(sys.executable).parent / "nst")
    with subprocess.Popen([nst, "web", "--url", url, "--port", "0"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            said = process.stderr.readline().strip()
            if not said.startswith("ready: "):
                raise NstError(f"nst web does not start: {said}")
            yield said.removeprefix("ready: ")
        finally:
            process.terminate()


def _raw(film: Path) -> Path:
    """The film as Chromium's camera plays it: YUV4MPEG2, nothing to decode."""
    target = film.with_suffix(".y4m")
    if not target.exists():
        with target.open("wb") as file:
            file.write(f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F{RATE}:1 Ip A1:1 C420jpeg\n".encode())
            for frame in VideoSource(film).frames():
                planes = VideoFrame.from_ndarray(frame.pixels, "rgb24").reformat(format="yuv420p")
                file.write(b"FRAME\n" + planes.to_ndarray().tobytes())
    return target
