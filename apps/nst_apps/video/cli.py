"""`nst video` and `nst webcam`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nst_apps.video.schedule import Schedule
from nst_client.client import AsyncStyleClient, StyleClient
from nst_client.options import (
    DEFAULT_URL,
    PROGRESS_PANEL,
    RETRIES,
    TUNING_PANEL,
    CaFile,
    Timeout,
    TokenFile,
    Url,
    read_token,
)
from nst_client.styles import unknown_style
from nst_client.stylize.processing import postprocess
from nst_core.console import one_line_errors, progress, say
from nst_core.errors import InputError, NstError, WriteError
from nst_core.images import Pixels
from nst_core.options import CommandLine, ProgressJson
from nst_core.process import keep_freed_memory

if TYPE_CHECKING:
    from nst_apps.video.stylize import VideoResult
    from nst_apps.video.webcam import LiveStatistics


Strength = Annotated[
    float,
    typer.Option(help="Blend between the content video (0) and the stylized video (1).", min=0.0, max=1.0),
]
PreserveColor = Annotated[bool, typer.Option("--preserve-color", help="Keep the colours of the content video.")]
MaxSide = Annotated[int | None, typer.Option(help="Shrink larger frames to this longer side in pixels.", min=16)]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print the summary as a line of JSON on stdout.", rich_help_panel=PROGRESS_PANEL),
]
VIDEO_PANEL = "Video"


class CodecName(StrEnum):
    """A video codec."""

    h264 = "h264"
    hevc = "hevc"
    vp9 = "vp9"


def video(
    source: Annotated[Path, typer.Argument(help="Video file in any format that FFmpeg reads.", metavar="VIDEO")],
    style: Annotated[
        str,
        typer.Option(
            "--style",
            "-s",
            help="Style, several with weights (great-wave:0.7,the-scream:0.3), or styles over time, each fading in "
            "for a second ('0:starry-night, 5s:great-wave').",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Video to write (.mp4, .mov, .mkv or .webm).")],
    url: Url = DEFAULT_URL,
    preview: Annotated[bool, typer.Option("--preview", help="Stylize the first five seconds only.")] = False,
    smooth: Annotated[
        bool, typer.Option("--smooth", help="Reduce flicker: blend each frame with the previous one along the motion.")
    ] = False,
    strength: Strength = 1.0,
    preserve_color: PreserveColor = False,
    max_side: MaxSide = None,
    codec: Annotated[CodecName, typer.Option(help="Video codec.", rich_help_panel=VIDEO_PANEL)] = CodecName.h264,
    crf: Annotated[
        int | None,
        typer.Option(
            help="Constant rate factor, lower is better; by default 18 for h264, 20 for hevc, 24 for vp9.",
            min=0,
            rich_help_panel=VIDEO_PANEL,
        ),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="Discard the finished frames of an earlier run and start again.",
            rich_help_panel=VIDEO_PANEL,
        ),
    ] = False,
    timeout: Timeout = 60.0,
    token_file: TokenFile = None,
    ca: CaFile = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", help="Number of requests in parallel.", min=1, rich_help_panel=TUNING_PANEL)
    ] = 3,
    as_json: AsJson = False,
    progress_json: ProgressJson = None,
) -> None:
    """Stylize a video; keep its sound, time stamps and rate.

    A run that was stopped or crashed continues with the same command: finished frames are in a folder beside the
    output. If the video, the style or an option has changed, --restart starts again.
    """
    with one_line_errors("video", command="nst video", progress_json=progress_json) as events:
        from nst_apps.video.settings import VideoSettings
        from nst_apps.video.stylize import stylize_video

        keep_freed_memory()
        plan = VideoSettings(Schedule.of(style), strength, preserve_color, max_side, smooth, preview, codec.value, crf)
        access: dict[str, Any] = {"timeout": timeout, "token": read_token(token_file), "ca": ca, "retries": RETRIES}
        with _frames() as on_progress:
            result = stylize_video(
                source,
                output,
                plan,
                lambda: AsyncStyleClient(url, **access),
                concurrency=jobs,
                restart=restart,
                on_progress=on_progress,
            )
        _report(source, output, result, as_json)
        events.end("finished", output=output)


def webcam(
    style: Annotated[
        str | None,
        typer.Option("--style", "-s", help="First style to show; by default the server's first."),
    ] = None,
    url: Url = DEFAULT_URL,
    camera: Annotated[int, typer.Option(help="Number of the camera.", min=0)] = 0,
    source: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="Video file to play in real time instead of the camera."),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="File to record the stylized video in (.mp4, .mov, .mkv or .webm)."),
    ] = None,
    no_window: Annotated[
        bool, typer.Option("--no-window", help="Run without a window, until the input ends or Ctrl-C.")
    ] = False,
    max_side: MaxSide = 512,
    strength: Strength = 1.0,
    preserve_color: PreserveColor = False,
    timeout: Timeout = 10.0,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Stylize a camera live, in a window.

    Keys: 1 to 9 or the arrows change the style; q or Esc quits. Frames that arrive faster than the server stylizes
    them are dropped, so the window never lags behind.
    """
    with one_line_errors("video"):
        from nst_apps.video import webcam as live_video

        keep_freed_memory()
        access: dict[str, Any] = {"timeout": timeout, "token": read_token(token_file), "ca": ca}
        with StyleClient(url, **access) as client:
            names = [offered.name for offered in client.styles()]
        if not names or (style is not None and style not in names):
            raise (
                unknown_style(url, style, names)
                if style
                else InputError(f"{url} offers no style; load a model from nst export on it")
            )
        now = style or names[0]
        frames = live_video.file_frames(source, max_side) if source else live_video.camera_frames(camera, max_side)

        with ExitStack() as stack:
            client = stack.enter_context(StyleClient(url, **access))
            window = None if no_window else stack.enter_context(closing(live_video.Window("nst webcam")))
            recorder = stack.enter_context(live_video.Recorder(record)) if record else None

            def stylize(pixels: Pixels) -> Pixels:
                stylized = client.stylize(pixels, now)
                return postprocess(pixels, stylized, strength, preserve_color)

            def show(frame: live_video.LiveFrame | None, statistics: live_video.LiveStatistics) -> bool:
                nonlocal now
                if frame is not None and recorder:
                    recorder.add(frame)
                if window is None:
                    return True
                keys = window.keys()
                for key in keys:
                    now = live_video.style_for_key(names, now, key)
                if frame is not None:
                    latency = 1000 * statistics.latencies[-1]
                    window.show(frame.pixels, f"{now}   {statistics.rate:.1f} frames/s   {latency:.0f} ms")
                return not {"q", "escape"} & set(keys)

            statistics = live_video.show_live(frames, stylize, show)
        _report_live(statistics, record, as_json)


@contextmanager
def _frames() -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that shows progress in frames/s; after a stop, say how far the run is."""
    update: Callable[[int, str], None] | None = None
    begun = at = whole = 0
    started = time.monotonic()
    with ExitStack() as stack:

        def on_progress(done: int, total: int) -> None:
            nonlocal update, begun, at, whole, started
            at, whole = done, total
            if update is None:
                if done:
                    say(f"resuming after frame {done} of {total}")
                update = stack.enter_context(progress("frames", total))
                begun, started = done, time.monotonic()
            update(done, f"{(done - begun) / max(time.monotonic() - started, 1e-3):.1f} frames/s")

        try:
            yield on_progress
        except (NstError, KeyboardInterrupt) as error:
            stack.close()
            if at and (isinstance(error, WriteError) or not isinstance(error, InputError)):
                say(f"{at} of {whole} frames are done; run the same command to continue from the last whole part")
            raise


def _report(source: Path, output: Path, result: VideoResult, as_json: bool) -> None:
    width, height = result.sides
    rate = result.stylized / result.seconds
    if as_json:
        before, after = result.warping_error or (None, None)
        figures = {
            "input": str(source),
            "output": str(output),
            "width": width,
            "height": height,
            "padded": result.padded,
            "frames": result.frames,
            "repeated": result.repeated,
            "stylized": result.stylized,
            "seconds": round(result.seconds, 2),
            "frames_per_second": round(rate, 2),
            "warping_error_before": before,
            "warping_error_after": after,
        }
        print(json.dumps(figures), flush=True)
        return
    padded = " (padded to even sides)" if result.padded else ""
    say(f"{source} -> {output}  {width}x{height}{padded}  {result.frames} frames  {rate:.1f} frames/s")
    if result.repeated:
        say(f"{result.repeated} frames could not be decoded; each repeats the previous frame")
    if result.warping_error:
        before, after = result.warping_error
        say(f"warping error {before:.1f} of 255 before smoothing, {after:.1f} after")


def _report_live(statistics: LiveStatistics, record: Path | None, as_json: bool) -> None:
    figures = {
        "taken": statistics.taken,
        "shown": statistics.shown,
        "frames_per_second": round(statistics.mean_rate, 2),
        "latency_ms": round(1000 * statistics.latency(), 1),
        "latency_ms_p95": round(1000 * statistics.latency(95), 1),
        "recorded": str(record) if record else None,
    }
    if as_json:
        print(json.dumps(figures), flush=True)
        return
    say(
        f"shown {statistics.shown} of {statistics.taken} frames  {statistics.mean_rate:.1f} frames/s  latency p50 "
        f"{figures['latency_ms']} ms, p95 {figures['latency_ms_p95']} ms" + (f"  -> {record}" if record else "")
    )


video_app = CommandLine()
video_app.command()(video)
webcam_app = CommandLine()
webcam_app.command()(webcam)
