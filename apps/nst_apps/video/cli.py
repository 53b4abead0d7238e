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
    FILES_PANEL,
    RETRIES,
    STYLE_PANEL,
    CaFile,
    Timeout,
    TokenFile,
    Url,
    read_token,
)
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
    typer.Option(help="How much of the style; the rest is the video.", min=0.0, max=1.0, rich_help_panel=STYLE_PANEL),
]
PreserveColor = Annotated[
    bool, typer.Option("--preserve-color", help="Keep the video's colours.", rich_help_panel=STYLE_PANEL)
]
MaxSide = Annotated[
    int | None,
    typer.Option(help="Shrink larger frames to this longer side, pixels.", min=16, rich_help_panel=STYLE_PANEL),
]
AsJson = Annotated[bool, typer.Option("--json", help="The figures as one line of JSON on stdout.")]


class CodecName(StrEnum):
    """How frames are stored."""

    h264 = "h264"
    hevc = "hevc"
    vp9 = "vp9"


def video(
    source: Annotated[Path, typer.Argument(help="A video in any format that FFmpeg reads.", metavar="VIDEO")],
    style: Annotated[
        str,
        typer.Option(
            "--style",
            "-s",
            help="A style that the server has, weights of styles (great-wave:0.7,the-scream:0.3), or styles over time, "
            "each fading in for a second: '0:starry-night, 5s:great-wave'.",
            rich_help_panel=STYLE_PANEL,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A file: .mp4 .mov .mkv .webm.", rich_help_panel=FILES_PANEL)
    ],
    strength: Strength = 1.0,
    preserve_color: PreserveColor = False,
    max_side: MaxSide = None,
    smooth: Annotated[
        bool,
        typer.Option(
            "--smooth",
            help="Flicker less: each frame takes over what moved from the frame before.",
            rich_help_panel=STYLE_PANEL,
        ),
    ] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Only the first five seconds.")] = False,
    codec: Annotated[
        CodecName, typer.Option(help="How frames are stored.", rich_help_panel=FILES_PANEL)
    ] = CodecName.h264,
    crf: Annotated[
        int | None,
        typer.Option(
            help="Quality as the codec counts it, less is better; by default 18 of h264, 20 of hevc, 24 of vp9.",
            min=0,
            rich_help_panel=FILES_PANEL,
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Frames at a time at the server.", min=1)] = 3,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="Begin again: remove what a run with other options has finished.",
            rich_help_panel=FILES_PANEL,
        ),
    ] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    timeout: Timeout = 60.0,
    token_file: TokenFile = None,
    ca: CaFile = None,
    progress_json: ProgressJson = None,
) -> None:
    """Stylize a video: its sound, time stamps and frame rate are kept.

    A run that was stopped, or crashed, goes on where it was: what is finished lies in a folder beside the output. If
    the video, the style or an option is different, --restart begins again.
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
        typer.Option("--style", "-s", help="The first; by default the server's first.", rich_help_panel=STYLE_PANEL),
    ] = None,
    strength: Strength = 1.0,
    preserve_color: PreserveColor = False,
    max_side: MaxSide = 512,
    camera: Annotated[int, typer.Option(help="Its number.", min=0, rich_help_panel=FILES_PANEL)] = 0,
    source: Annotated[
        Path | None,
        typer.Option(
            "--input", "-i", help="A video, played in real time, in the camera's place.", rich_help_panel=FILES_PANEL
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Keep what is shown in this file (.mp4 .mov .mkv .webm).", rich_help_panel=FILES_PANEL),
    ] = None,
    no_window: Annotated[
        bool, typer.Option("--no-window", help="Show nothing; ends with the input, or by Ctrl-C.")
    ] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    timeout: Timeout = 10.0,
    token_file: TokenFile = None,
    ca: CaFile = None,
) -> None:
    """Stylize what the camera sees, live.

    Keys: 1 to 9, or the arrows, for the style; q or Esc to end. Frames that the server is too slow for are dropped,
    so that what is shown is never old.
    """
    with one_line_errors("video"):
        from nst_apps.video import webcam as live_video

        keep_freed_memory()
        access: dict[str, Any] = {"timeout": timeout, "token": read_token(token_file), "ca": ca}
        with StyleClient(url, **access) as client:
            names = [offered.name for offered in client.styles()]
        if not names or (style is not None and style not in names):
            raise InputError(f"{url} has no style {style or ''!r}; it has: {', '.join(names) or 'none'}")
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
    """Progress with frames a second, from the first call on; after a stop, a message with how far the run is."""
    update: Callable[[int, str], None] | None = None
    begun = at = whole = 0
    started = time.monotonic()
    with ExitStack() as stack:

        def on_progress(done: int, total: int) -> None:
            nonlocal update, begun, at, whole, started
            at, whole = done, total
            if update is None:
                if done:
                    say(f"goes on behind frame {done} of {total}")
                update = stack.enter_context(progress("frames", total))
                begun, started = done, time.monotonic()
            update(done, f"{(done - begun) / max(time.monotonic() - started, 1e-3):.1f} frames/s")

        try:
            yield on_progress
        except (NstError, KeyboardInterrupt) as error:
            stack.close()
            if at and (isinstance(error, WriteError) or not isinstance(error, InputError)):
                say(f"{at} of {whole} frames are finished; the same command goes on from the last part that is whole")
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
    padded = ", its last column or row repeated for even sides" if result.padded else ""
    say(f"{source} -> {output}  {width}x{height}{padded}  {result.frames} frames  {rate:.1f} frames/s")
    if result.repeated:
        say(f"{result.repeated} frames are broken: each repeats the frame before it")
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
        f"shown {statistics.shown} of {statistics.taken} frames  {statistics.mean_rate:.1f} frames/s  latency "
        f"{figures['latency_ms']} ms, 95 % below {figures['latency_ms_p95']} ms" + (f"  -> {record}" if record else "")
    )


video_app = CommandLine()
video_app.command()(video)
webcam_app = CommandLine()
webcam_app.command()(webcam)
