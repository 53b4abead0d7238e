"""Ways of a video through a served model: to a file, to a window, and to the page of `nst web`."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from av import VideoFrame

from nst_apps.video.codec.decoder import VideoSource
from nst_apps.video.codec.encoder import Encoder
from nst_apps.video.codec.formats import Frame, VideoFormat
from nst_apps.video.schedule import Schedule
from nst_apps.video.settings import VideoSettings
from nst_apps.video.stylize import stylize_video
from nst_apps.video.webcam import LiveFrame, LiveStatistics, Window, file_frames, show_live
from nst_bench.served.server import ModelServer, ready_command
from nst_client import AsyncStyleClient, StyleClient
from nst_core.distribution import install_command
from nst_core.errors import NstError
from nst_core.images import Pixels, fit, open_image, sample_photographs

WIDTH, HEIGHT = 512, 384
RATE = 30
"""Frames per second of the video."""

CAMERA = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", "--use-file-for-fake-video-capture=")
"""Options that make Chromium use a file as its camera, without asking."""

PAGE_TIMEOUT_MILLISECONDS = 120_000
"""How long the page may take to start."""

COUNTED = """
  const drawn = CanvasRenderingContext2D.prototype.drawImage;
  window.moments = [];
  CanvasRenderingContext2D.prototype.drawImage = function (...given) {
    drawn.apply(this, given);
    if (this.canvas.id === "canvas") moments.push(performance.now());
  };
"""
"""Script that records when the page shows a stylized frame."""

THUMBNAILED = """() => {
  const styles = [...document.querySelectorAll("#styles button")];
  return styles.length && styles.every((style) => style.querySelector("img"));
}"""
"""Script that checks whether the page has all its thumbnails."""


def write_video(path: Path, frames: int) -> Path:
    """Write a video that pans over the photographs that ship with nst, with equal shares of the frames."""
    form = VideoFormat(WIDTH, HEIGHT, Fraction(1, 15_360), Fraction(RATE))
    photographs = sample_photographs()
    share = math.ceil(frames / len(photographs))
    with Encoder(path, form, "h264", container="mp4") as encoder:
        for number in range(frames):
            if number % share == 0:
                wide = fit(open_image(photographs[number // share]), WIDTH + 2 * share, HEIGHT).pixels
            left = 2 * (number % share)
            pixels = np.ascontiguousarray(wide[:, left : left + WIDTH])
            encoder.add(Frame(pixels, number * 15_360 // RATE))
    return path


def frames_of(video: Path) -> list[Pixels]:
    """Return all frames, `uint8 [H, W, 3]`."""
    return [frame.pixels for frame in VideoSource(video).frames()]


def warm_up(server: ModelServer, bare: Callable[[Pixels], object], style: str, video: Path) -> None:
    """Stylize some frames: the first requests of a shape are slower."""
    first = next(VideoSource(video).frames()).pixels
    with StyleClient(server.endpoints.grpc) as client:
        for _ in range(3):
            client.stylize(first, style)
            bare(first)


def to_file(server: ModelServer, style: str, video: Path) -> tuple[list[float], float]:
    """Return the seconds between frames, and frames/s from the start to the finished file."""
    moments: list[float] = []
    target = video.with_name("stylized.mp4")
    started = time.perf_counter()
    result = stylize_video(
        video,
        target,
        VideoSettings(Schedule.of(style)),
        lambda: AsyncStyleClient(server.endpoints.grpc, shared_memory=None),
        on_progress=lambda done, total: moments.append(time.perf_counter()),
    )
    rate = result.frames / (time.perf_counter() - started)
    target.unlink()
    return np.diff(moments).tolist(), rate


def to_window(server: ModelServer, style: str, video: Path) -> tuple[LiveStatistics, list[float]]:
    """Play the video in real time in a window; return statistics and the seconds between shown frames."""
    moments: list[float] = []
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    with StyleClient(server.endpoints.grpc, shared_memory=None) as client, closing(Window("nst bench video")) as window:

        def show(frame: LiveFrame | None, statistics: LiveStatistics) -> bool:
            window.keys()
            if frame is not None:
                window.show(frame.pixels, f"{statistics.rate:.1f} frames/s")
                moments.append(time.perf_counter())
            return True

        statistics = show_live(file_frames(video, None), lambda pixels: client.stylize(pixels, style), show)
    return statistics, np.diff(moments).tolist()


def missing_browser() -> str | None:
    """Return why the page cannot be measured, or None."""
    if not find_spec("playwright"):
        return f"playwright is not installed; run {install_command('dev')}"
    return None if shutil.which("chromium") else "chromium is not installed; run apt-get install chromium"


def to_page(server: ModelServer, style: str, video: Path, duration: float) -> list[float]:
    """Use the video as the page's camera; return the seconds between shown stylized frames."""
    from playwright.sync_api import sync_playwright

    camera = _raw(video)
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", *CAMERA[:-1], f"{CAMERA[-1]}{camera}"]
    web = ready_command("nst", "web", "--url", server.endpoints.grpc, "--port", "0")
    with web as (_, url), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page()
        page.set_default_timeout(PAGE_TIMEOUT_MILLISECONDS)
        page.add_init_script(COUNTED)
        page.goto(url)
        page.wait_for_function(THUMBNAILED)
        page.click(f"[data-style='{style}']")
        page.click("#camera")
        page.wait_for_function("() => moments.length > 4")  # the first frames are slower
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
        raise NstError(f"the page stylized frames of {sides[0]} x {sides[1]}, expected {WIDTH} x {HEIGHT}")
    seconds: list[float] = (np.diff(moments) / 1000).tolist()
    return seconds


def _raw(video: Path) -> Path:
    """Convert the video to YUV4MPEG2, which Chromium's camera plays without decoding."""
    target = video.with_suffix(".y4m")
    if not target.exists():
        with target.open("wb") as file:
            file.write(f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F{RATE}:1 Ip A1:1 C420jpeg\n".encode())
            for frame in VideoSource(video).frames():
                planes = VideoFrame.from_ndarray(frame.pixels, "rgb24").reformat(format="yuv420p")
                file.write(b"FRAME\n" + planes.to_ndarray().tobytes())
    return target
