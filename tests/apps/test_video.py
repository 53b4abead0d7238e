"""`nst video` with a server that is a function; what it writes is read by OpenCV, which brings an FFmpeg of its own."""

import asyncio
import fcntl
import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from typer.testing import CliRunner

import nst_client.base_client
from nst_apps.batch.sections import Section, SectionedVideo
from nst_apps.batch.storage import OWN_FOLDER, Folder
from nst_apps.video import stylize as room
from nst_apps.video.cli import video_app
from nst_apps.video.codec.decoder import VideoSource
from nst_apps.video.codec.encoder import Encoder
from nst_apps.video.codec.formats import CODECS, Frame, VideoFormat
from nst_apps.video.flow import Smoother, motion
from nst_apps.video.parts import PART_FRAMES
from nst_apps.video.schedule import Schedule
from nst_apps.video.settings import VideoSettings
from nst_apps.video.stylize import VideoResult, stylize_video
from nst_client import AsyncStyleClient, MockTransport, Rejected, Request, StyleClient, UnknownStyle
from nst_client.stylize.processing import StylizeOptions
from nst_client.transports.base import Array
from nst_core.contract import IMAGE, STYLE_WEIGHTS
from nst_core.errors import ImageError, InputError, WriteError
from nst_core.images import Pixels

from .clips import apart, broken, clip, panned, seen, sound

WIDTH, HEIGHT = 96, 64
CLOSE = 5.0
"""Mean absolute difference of 255 that two encodings may cost."""

MODELS = {
    "negative": {},
    "same": {},
    "black": {},
    "gallery": {"styles": "wave,scream"},
}


def stylize(request: Request) -> Array:
    pixels = request.inputs[IMAGE]
    match request.model:
        case "negative":
            return 255 - pixels
        case "black":
            return np.zeros_like(pixels)
        case "gallery":
            weights = request.inputs[STYLE_WEIGHTS][0]
            return np.full_like(pixels, round(255 * weights[1] / weights.sum()))
    return pixels


def stylized(
    source: Path, target: Path, style: str = "negative", handler: Callable[[Request], Array] = stylize, **options: Any
) -> VideoResult:
    transport = options.pop("transport", None) or MockTransport(handler, MODELS)
    on_progress, restart = options.pop("on_progress", lambda done, total: None), options.pop("restart", False)
    plan = VideoSettings(Schedule.of(style), **options)

    def connect() -> AsyncStyleClient:
        return AsyncStyleClient(transport=transport, retries=0)

    return stylize_video(source, target, plan, connect, restart=restart, on_progress=on_progress)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds with sound, more than two parts."""
    return clip(tmp_path_factory.mktemp("video") / "video.mp4", panned(100, WIDTH, HEIGHT), sound=True)


def test_frames_time_stamps_rate_and_sound_are_kept(video: Path, tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    result = stylized(video, tmp_path / "o.mp4", on_progress=lambda done, total: progress.append((done, total)))
    before, after = seen(video), seen(tmp_path / "o.mp4")
    assert (result.frames, result.stylized, result.repeated, result.sides) == (100, 100, 0, (WIDTH, HEIGHT))
    assert progress == [(done, 100) for done in range(101)]
    assert after.milliseconds == pytest.approx(before.milliseconds)
    assert after.rate == before.rate == 25
    assert len(after.images) == 100
    assert max(apart(255 - old, new) for old, new in zip(before.images, after.images, strict=True)) < CLOSE
    assert sound(tmp_path / "o.mp4") == sound(video)
    assert [path.name for path in tmp_path.iterdir()] == ["o.mp4"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_variable_frame_rate_is_kept(tmp_path: Path, suffix: str) -> None:
    """Frames that last from 10 to 600 ms, over the joint of two parts, and the length of the last."""
    random = np.random.default_rng(0)
    stamps = [0, *np.cumsum(random.choice([128, 512, 1024, 7680], PART_FRAMES + 20)).tolist()]
    source = clip(tmp_path / f"s{suffix}", panned(len(stamps), WIDTH, HEIGHT), stamps=stamps)
    stylized(source, tmp_path / f"o{suffix}")
    before, after = seen(source), seen(tmp_path / f"o{suffix}")
    assert len(after.images) == len(stamps)
    assert after.milliseconds == pytest.approx(before.milliseconds, abs=0.01)
    assert max(apart(255 - old, new) for old, new in zip(before.images, after.images, strict=True)) < CLOSE
    with av.open(str(source)) as read, av.open(str(tmp_path / f"o{suffix}")) as written:
        assert written.duration == pytest.approx(read.duration, abs=1000)  # microseconds


@pytest.mark.parametrize(("codec", "suffix", "sides"), [("h264", ".mp4", (96, 64)), ("vp9", ".webm", (95, 63))])
def test_an_odd_size_is_right(tmp_path: Path, codec: str, suffix: str, sides: tuple[int, int]) -> None:
    """H.264 has its last column and row twice, VP9 takes it as it is; nothing is sheared or shrunk."""
    source = clip(tmp_path / "s.mp4", panned(5, 95, 63), pix_fmt="yuv444p")
    result = stylized(source, tmp_path / f"o{suffix}", codec=codec)
    assert (result.sides, result.padded) == (sides, codec == "h264")
    images = seen(tmp_path / f"o{suffix}").images
    for expected, other in zip(seen(source).images, images, strict=True):
        assert other.shape == (sides[1], sides[0], 3)
        assert apart(255 - expected, other[:63, :95]) < 2 * CLOSE
    if codec == "h264":
        assert apart(images[0][:, 94], images[0][:, 95]) < 2 * CLOSE


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_what_is_up_stays_up(tmp_path: Path, degrees: int) -> None:
    source = clip(tmp_path / "s.mp4", panned(5, WIDTH, HEIGHT), rotation=degrees)
    result = stylized(source, tmp_path / "o.mp4")
    assert result.sides == ((WIDTH, HEIGHT) if degrees == 180 else (HEIGHT, WIDTH))
    images = seen(tmp_path / "o.mp4").images
    assert len(images) == 5
    for expected, other in zip(seen(source).images, images, strict=True):
        assert other.shape == expected.shape == (result.sides[1], result.sides[0], 3)
        assert apart(255 - expected, other) < CLOSE


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9"])
def test_every_codec_is_read_again(video: Path, tmp_path: Path, codec: str) -> None:
    stylized(video, tmp_path / "o.mkv", codec=codec, crf=10)
    with av.open(str(tmp_path / "o.mkv")) as file:
        assert file.streams.video[0].codec_context.codec.canonical_name == codec
        images = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(images) == 100
    assert apart(255 - seen(video).images[70], images[70]) < 2 * CLOSE


def test_a_part_of_a_few_frames_has_times_in_every_codec(tmp_path: Path) -> None:
    """x265 leaves the decoding times of a few frames to chance: one run in fifty failed."""
    form = VideoFormat(32, 32, Fraction(1, 12_800), Fraction(25))
    for codec, count in product(CODECS, (1, 2, 3, 6)):
        for _ in range(40 if codec == "hevc" else 1):
            with Encoder(tmp_path / "x.mp4", form, codec, container="mp4") as encoder:
                for number in range(count):
                    encoder.add(Frame(np.full((32, 32, 3), 40 * number, np.uint8), 512 * number))
            with av.open(str(tmp_path / "x.mp4")) as file:
                packets = [packet for packet in file.demux(video=0) if packet.size]
            ticks = [(float(packet.dts * packet.time_base), float(packet.pts * packet.time_base)) for packet in packets]
            assert all(-1 < dts <= pts for dts, pts in ticks) and len(ticks) == count, (codec, count)
            assert sorted(pts for _, pts in ticks) == pytest.approx([number / 25 for number in range(count)])


def test_the_quality_is_that_of_crf(video: Path, tmp_path: Path) -> None:
    fine, coarse = (quantity(video, tmp_path / f"{crf}.mp4", crf) for crf in (5, 45))
    assert fine > 3 * coarse


def quantity(video: Path, target: Path, crf: int) -> int:
    """Bytes of the images."""
    stylized(video, target, crf=crf)
    with av.open(str(target)) as file:
        return sum(packet.size for packet in file.demux(video=0))


def test_colours_are_those_of_their_matrix(tmp_path: Path) -> None:
    """Vivid ones, through the matrix that the file says: PyAV converts by what a frame says of itself."""
    colours = [(255, 0, 0), (0, 200, 0), (20, 40, 255), (250, 220, 10)]
    source = clip(tmp_path / "s.mkv", [np.full((32, 32, 3), colour, np.uint8) for colour in colours])
    stylized(source, tmp_path / "o.mp4", "same")
    with av.open(str(tmp_path / "o.mp4")) as file:
        for colour, frame in zip(colours, file.decode(video=0), strict=True):
            assert frame.colorspace == 6  # as a small video that says nothing is taken
            assert frame.to_ndarray(format="rgb24")[16, 16] == pytest.approx(colour, abs=6)


class Reluctant(MockTransport):
    """Answers when `together` requests wait, the last of them first."""

    def __init__(self, together: int, total: int) -> None:
        super().__init__(stylize, MODELS)
        self.together, self.left, self.waiting, self.most = together, total, list[asyncio.Event](), 0

    async def infer(self, request: Request, seconds: float) -> Array:
        mine = asyncio.Event()
        self.waiting.append(mine)
        self.most = max(self.most, len(self.waiting))
        if len(self.waiting) == min(self.together, self.left):
            for event in reversed(self.waiting):
                event.set()
                await asyncio.sleep(0)
            self.left -= len(self.waiting)
            self.waiting.clear()
        await mine.wait()
        return await super().infer(request, seconds)


def test_several_requests_are_on_their_way_and_order_is_kept(tmp_path: Path) -> None:
    source = clip(tmp_path / "s.mp4", panned(20, WIDTH, HEIGHT))
    transport = Reluctant(3, 20)
    stylized(source, tmp_path / "o.mp4", transport=transport)
    assert transport.most == 3
    for expected, other in zip(seen(source).images, seen(tmp_path / "o.mp4").images, strict=True):
        assert apart(255 - expected, other) < CLOSE


def test_a_broken_frame_is_the_one_before_once_more_and_counted(tmp_path: Path) -> None:
    whole = clip(tmp_path / "w.mp4", panned(30, WIDTH, HEIGHT, step=6))
    source = broken(tmp_path / "s.mp4", whole, [29, 7])
    result = stylized(source, tmp_path / "o.mp4", "same")
    given, after = seen(whole), seen(tmp_path / "o.mp4")
    assert (result.frames, len(after.images)) == (30, 30)
    assert after.milliseconds == pytest.approx(given.milliseconds)
    repeats = [n for n in range(1, 30) if apart(after.images[n], after.images[n - 1]) < 1.0]
    assert {7, 29} <= set(repeats) and len(repeats) == result.repeated
    for n in repeats:
        assert apart(after.images[n], given.images[n]) > 4 * apart(after.images[n], after.images[n - 1])


def test_a_file_that_is_cut_off_is_stylized_as_far_as_it_goes(video: Path, tmp_path: Path) -> None:
    stylized(video, tmp_path / "w.mkv", "same")
    data = (tmp_path / "w.mkv").read_bytes()
    (tmp_path / "s.mkv").write_bytes(data[: len(data) // 2])
    result = stylized(tmp_path / "s.mkv", tmp_path / "o.mkv")
    images = seen(tmp_path / "o.mkv").images
    assert 20 < result.frames == len(images) < 80
    assert apart(255 - seen(video).images[15], images[15]) < 2 * CLOSE


def test_styles_of_one_model_fade_by_their_weights(video: Path, tmp_path: Path) -> None:
    transport = MockTransport(stylize, MODELS)
    stylized(video, tmp_path / "o.mp4", "0:wave, 1.5s:scream, 3:wave:1,scream:3", transport=transport)
    assert len(transport.requests) == 100
    weights = [request.inputs[STYLE_WEIGHTS][0] for request in transport.requests]
    fractions = [float(row[1] / row.sum()) for row in weights]
    assert fractions[:38] == [0.0] * 38 and fractions[63:75] == [1.0] * 12
    assert fractions[38:63] == pytest.approx([(n / 25) - 1.5 for n in range(38, 63)], abs=1e-5)
    assert fractions[75:] == pytest.approx([1.0 - 0.25 * (n / 25 - 3) for n in range(75, 100)], abs=1e-5)
    grey = [int(image.mean()) for image in seen(tmp_path / "o.mp4").images]
    assert (grey[10], grey[70]) == (pytest.approx(0, abs=3), pytest.approx(255, abs=3))


def test_styles_of_two_models_fade_as_images(video: Path, tmp_path: Path) -> None:
    transport = MockTransport(stylize, MODELS)
    stylized(video, tmp_path / "o.mp4", "0:same, 1s:black", transport=transport)
    before, after = seen(video).images, seen(tmp_path / "o.mp4").images
    for n, fraction in ((20, 0.0), (37, 0.48), (60, 1.0)):
        assert apart(((1 - fraction) * before[n]).astype(np.uint8), after[n]) < CLOSE
    assert len(transport.requests) == 100 + 24  # both only while they fade: none at its first moment


@pytest.mark.parametrize("text", ["1s:wave", "0:wave, 0s:scream", "0:wave, 5:a:x", "wave:x"])
def test_a_schedule_that_cannot_be(text: str) -> None:
    with pytest.raises(InputError, match=r"not in order|is not a number"):
        Schedule.of(text)


def test_a_preview_is_five_seconds_of_images_and_sound(tmp_path: Path) -> None:
    source = clip(tmp_path / "s.mp4", panned(150, 32, 32, step=1), sound=True)
    result = stylized(source, tmp_path / "o.mp4", preview=True)
    assert (result.frames, len(seen(tmp_path / "o.mp4").images)) == (125, 125)
    kept = sound(tmp_path / "o.mp4")
    assert kept == sound(source)[: len(kept)]
    assert len(kept) == pytest.approx(5 * 44_100 / 1024, abs=2)


def test_strength_colours_and_size(video: Path, tmp_path: Path) -> None:
    stylized(video, tmp_path / "o.mp4", strength=0.25, max_side=48)
    images = seen(tmp_path / "o.mp4").images
    assert images[0].shape == (32, 48, 3)
    small = seen(video).images[50][::2, ::2].astype(float)
    expected = (0.75 * small + 0.25 * (255 - small)).mean((0, 1))
    assert images[50].mean((0, 1)) == pytest.approx(expected, abs=4)
    stylized(video, tmp_path / "c.mp4", preserve_color=True)
    before, after = seen(video).images[50].astype(float), seen(tmp_path / "c.mp4").images[50].astype(float)
    assert (after[..., 0] - after[..., 2]).mean() == pytest.approx((before[..., 0] - before[..., 2]).mean(), abs=10)


class Flicker:
    """A style that is another one from frame to frame, the same in every run: noise by the image's own content."""

    def __init__(self, until: int | None = None) -> None:
        self.until, self.requests = until, 0

    def __call__(self, request: Request) -> Array:
        if self.requests == self.until:
            raise Rejected("no more")
        self.requests += 1
        pixels = request.inputs[IMAGE]
        noise = np.random.default_rng(int(pixels.sum())).normal(0.0, 20.0, pixels.shape)
        return np.clip(pixels + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("smooth", [False, True])
def test_a_run_that_was_stopped_goes_on_to_the_same_result(video: Path, tmp_path: Path, smooth: bool) -> None:
    whole = stylized(video, tmp_path / "whole.mp4", "same", Flicker(), smooth=smooth)
    with pytest.raises(Rejected):
        stylized(video, tmp_path / "o.mp4", "same", Flicker(70), smooth=smooth)
    assert not (tmp_path / "o.mp4").exists()
    progress: list[int] = []
    second = Flicker()
    result = stylized(
        *(video, tmp_path / "o.mp4", "same", second),
        smooth=smooth,
        on_progress=lambda done, total: progress.append(done),
    )
    assert progress[0] == PART_FRAMES and result.stylized == 100 - PART_FRAMES
    assert second.requests == result.stylized + 1  # the last finished frame again: is the style the same?
    assert result.frames == whole.frames == 100
    assert result.warping_error == whole.warping_error
    in_one_go, in_parts = seen(tmp_path / "whole.mp4"), seen(tmp_path / "o.mp4")
    assert in_one_go.milliseconds == in_parts.milliseconds
    # x264 does not give quite the same twice, and no two frames of a noisy video are alike.
    assert max(apart(a, b) for a, b in zip(in_one_go.images, in_parts.images, strict=True)) < 8.0
    assert min(apart(a, b) for a, b in pairwise(in_parts.images)) > 10.0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["o.mp4", "whole.mp4"]


def test_the_state_of_an_earlier_version_is_read(video: Path, tmp_path: Path) -> None:
    """It calls the last stylized frame `painted`."""
    whole = stylized(video, tmp_path / "whole.mp4", "same", Flicker(), smooth=True)
    with pytest.raises(Rejected):
        stylized(video, tmp_path / "o.mp4", "same", Flicker(70), smooth=True)
    (state,) = (tmp_path / "o.mp4.parts").glob("*.npz")
    with np.load(state) as saved:
        values = dict(saved)
    values["painted"] = values.pop("stylized")
    np.savez(state, **values)
    result = stylized(video, tmp_path / "o.mp4", "same", Flicker(), smooth=True)
    assert (result.stylized, result.warping_error) == (100 - PART_FRAMES, whole.warping_error)


def begun(video: Path, target: Path, **options: Any) -> list[Path]:
    """The finished part of a run that is stopped after 70 of 100 frames."""
    with pytest.raises(Rejected):
        stylized(video, target, "same", Flicker(70), **options)
    parts = list(target.with_name(f"{target.name}.parts").glob("[0-9]*.nut"))
    assert len(parts) == 1
    return parts


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"style": "wave"}, "--style 0:same:1, not 0:wave:1"),
        ({"strength": 0.5}, "--strength 1.0, not 0.5"),
        ({"preserve_color": True}, "--preserve-color off, not on"),
        ({"max_side": 48}, "--max-side none, not 48"),
        ({"smooth": True}, "--smooth off, not on"),
        ({"preview": True}, "--preview off, not on"),
        ({"codec": "hevc"}, "--codec h264, not hevc"),
        ({"crf": 20}, "--crf 18, not 20"),
    ],
)
def test_finished_parts_are_not_thrown_away_for_another_option(
    video: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    parts = begun(video, tmp_path / "o.mp4")
    with pytest.raises(InputError) as refused:
        stylized(video, tmp_path / "o.mp4", **({"style": "same"} | change))
    assert f"o.mp4.parts has {PART_FRAMES} frames with {words}; give --restart" in str(refused.value)
    assert all(part.exists() for part in parts)
    assert stylized(video, tmp_path / "o.mp4", "same", Flicker()).stylized == 100 - PART_FRAMES


def test_finished_parts_of_another_video_or_style_or_run_are_kept(video: Path, tmp_path: Path) -> None:
    target = tmp_path / "o.mp4"
    (part,) = begun(video, target)
    other = clip(tmp_path / "s.mp4", panned(10, 32, 32))
    with pytest.raises(InputError, match=r"with the video \d+ bytes, \w+, not \d+ bytes"):
        stylized(other, target, "same")
    with pytest.raises(InputError, match="the style now gives a different result"):
        stylized(video, target, "same", stylize)  # a model of the same name that is another
    fcntl.flock(lock := (part.parent / "lock").open("rb"), fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another nst video is writing to"):
        stylized(video, target, "same", Flicker(), restart=True)
    lock.close()
    (part.parent / "about.json").write_text("[]")
    with pytest.raises(InputError, match="from another version of nst video"):
        stylized(video, target, "same", Flicker())
    assert part.exists()


def test_a_video_that_was_moved_is_the_same(video: Path, tmp_path: Path) -> None:
    begun(Path(shutil.copy(video, tmp_path / "s.mp4")), tmp_path / "o.mp4", crf=18)
    (tmp_path / "s.mp4").rename(tmp_path / "moved.mp4")
    assert stylized(tmp_path / "moved.mp4", tmp_path / "o.mp4", "same", Flicker()).stylized == 100 - PART_FRAMES


def test_begun_again_nothing_of_the_run_before_is_used(video: Path, tmp_path: Path) -> None:
    (part,) = begun(video, tmp_path / "o.mp4")
    (part.parent / f"{PART_FRAMES:09}-7.nut").write_bytes(b"")
    assert stylized(video, tmp_path / "o.mp4", "negative", restart=True).stylized == 100
    assert [path.name for path in tmp_path.iterdir()] == ["o.mp4"]


def test_a_disk_that_is_full_costs_no_finished_part(video: Path, tmp_path: Path) -> None:
    """A limit on the size of a file stands for it: it comes in the middle of a part, and then as all are joined."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    target = tmp_path / "o.mp4"

    def full_at(number: int, size: int) -> None:
        def on_progress(done: int, total: int) -> None:
            if done == number:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

        try:
            with pytest.raises(WriteError, match=r"cannot write .*: File too large"):
                stylized(video, target, "same", Flicker(), on_progress=on_progress)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not target.exists()

    full_at(60, 20_000)
    parts = tmp_path / "o.mp4.parts"
    assert [file.name for file in parts.glob("*.nut")] == [f"{0:09}-{PART_FRAMES}.nut"]
    (part,) = parts.glob("*.nut")
    full_at(100, part.stat().st_size)
    assert len(list(parts.glob("[0-9]*.nut"))) == 3
    assert stylized(video, target, "same", Flicker()).stylized == 0
    assert len(seen(target).images) == 100
    assert [path.name for path in tmp_path.iterdir()] == ["o.mp4"]


def test_where_a_loop_runs_already(video: Path, tmp_path: Path) -> None:
    """As in a notebook: the video is stylized all the same, and Ctrl-C stops it there too."""
    target, notebook = tmp_path / "o.mp4", asyncio.new_event_loop()

    def run_cell(source: Path, on_progress: room.OnProgress = lambda done, total: None) -> VideoResult:
        async def cell() -> VideoResult:
            return stylized(source, target, on_progress=on_progress)

        return notebook.run_until_complete(cell())

    def interrupt(done: int, total: int) -> None:
        if done == 60:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with pytest.raises(ImageError, match="no such file"):
        run_cell(tmp_path / "none.mp4")
    with pytest.raises(KeyboardInterrupt):
        run_cell(video, interrupt)
    assert not target.exists() and not [run for run in threading.enumerate() if run.name.startswith("nst-video")]
    result = run_cell(video)
    assert (result.stylized, result.frames) == (100 - PART_FRAMES, 100)
    notebook.close()


def test_a_frame_that_is_encoded_is_waited_for(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C meanwhile: the file is closed behind it, since libav would end the process."""
    events: list[str] = []
    add, close = Encoder.add, Encoder.__exit__

    def slow(encoder: Encoder, frame: Frame) -> None:
        events.append("begun")
        if events.count("begun") == 11:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.5)
        add(encoder, frame)
        events.append("done")

    def closed(encoder: Encoder, *about: Any) -> None:
        events.append("closed")
        close(encoder, *about)

    monkeypatch.setattr(Encoder, "add", slow)
    monkeypatch.setattr(Encoder, "__exit__", closed)
    with pytest.raises(KeyboardInterrupt):
        stylized(video, tmp_path / "o.mp4")
    probe = ["begun", "done", "closed"]
    assert events == probe + 10 * ["begun", "done"] + ["closed"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["http:x", "concat:x", "pipe:0", "file:x", "a b%20%d", "mödel:é", "-x", os.fsdecode(b"\xff")]
)
def test_a_name_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """FFmpeg takes some for addresses, and Python some for no text."""
    monkeypatch.chdir(tmp_path)
    clip(tmp_path / "s.mp4", panned(3, 32, 32)).rename(f"{name}.mp4")
    assert stylized(Path(f"{name}.mp4"), Path(f"{name}-stylized.mp4")).frames == 3
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.mp4", f"{name}-stylized.mp4"}


def test_sections_of_a_video_that_was_replaced_are_not_used(tmp_path: Path) -> None:
    """Else the new video would be joined from images of both."""
    (tmp_path / "in").mkdir()
    source = clip(tmp_path / "in" / "s.mp4", panned(3, 32, 32))
    video = SectionedVideo(Folder.at(str(tmp_path / "in")), Folder.at(str(tmp_path / "out")), "s.mp4")
    video.target.prepare()
    client = StyleClient(transport=MockTransport(stylize, MODELS))
    section, end = Section("s.mp4", 0, 1), Section("s.mp4", 1, 1)
    # Of two sections, so that nothing is joined yet.
    video.stylize(replace(section, count=2), StylizeOptions({"same": 1.0}), client)
    assert video.missing() == [end]
    clip(source, panned(5, 32, 32))
    assert video.missing() == [section]
    video.stylize(section, StylizeOptions({"same": 1.0}), client)
    assert len(seen(tmp_path / "out" / "s.mp4").images) == 5
    assert not (tmp_path / "out" / OWN_FOLDER / "sections" / "s.mp4").exists()


def test_a_link_to_the_output_stays(tmp_path: Path) -> None:
    source = clip(tmp_path / "s.mp4", panned(3, 32, 32))
    (tmp_path / "o.mp4").symlink_to("real.mp4")
    stylized(source, tmp_path / "o.mp4")
    assert (tmp_path / "o.mp4").is_symlink() and len(seen(tmp_path / "real.mp4").images) == 3


def test_a_folder_that_is_not_ours_is_left_alone(video: Path, tmp_path: Path) -> None:
    (tmp_path / "o.mp4.parts").mkdir()
    (tmp_path / "o.mp4.parts" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="move it away"):
        stylized(video, tmp_path / "o.mp4")
    assert (tmp_path / "o.mp4.parts" / "letter.txt").read_text() == "dear"


def test_smoothing_takes_flicker_and_leaves_what_moves(video: Path, tmp_path: Path) -> None:
    result = stylized(video, tmp_path / "o.mp4", "same", Flicker(), smooth=True)
    assert result.warping_error is not None
    before, after = result.warping_error
    assert 20 < before < 35 and after < before / 2
    given, smoothed = seen(video).images, seen(tmp_path / "o.mp4").images
    stylized(video, tmp_path / "r.mp4", "same", Flicker())
    rough = seen(tmp_path / "r.mp4").images
    assert apart(given[60], smoothed[60]) < 0.75 * apart(given[60], rough[60])


def test_nothing_is_carried_over_a_cut() -> None:
    """Another photograph: no motion is trusted, and the second image is its own."""
    first, second = panned(1, 128, 96)[0], np.ascontiguousarray(255 - panned(30, 128, 96)[29][::-1])
    smoother = Smoother()
    smoother.smooth(first, None)
    assert apart(smoother.smooth(second, motion(first, second)), second) < 1.0


def test_motion_is_where_things_were() -> None:
    before, after = panned(3, 128, 96, step=3)[::2]
    moved = motion(before, after)
    inside = moved.trust[10:-10, 10:-20]
    assert (inside > 0.5).mean() > 0.9
    across = moved.x - np.arange(128)[None]
    assert np.median(across) == pytest.approx(6.0, abs=0.25)
    assert moved.trust[:, -5:].max() == 0.0  # it was outside
    assert apart(moved.carried(before)[10:-10, 10:-20], after[10:-10, 10:-20]) < 4.0


def test_what_cannot_be_is_refused_before_anything_is_stylized(video: Path, tmp_path: Path) -> None:
    silent = clip(tmp_path / "silent.mp4", panned(3, 32, 32))
    wide = clip(tmp_path / "wide.mkv", [np.zeros((16, 16_400, 3), np.uint8)], codec="ffv1", pix_fmt="yuv444p")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "same.mp4").hardlink_to(silent)
    cases: list[tuple[Path, Path, dict[str, Any], type[Exception], str]] = [
        (tmp_path / "none.mp4", tmp_path / "o.mp4", {}, ImageError, "no such file"),
        (tmp_path, tmp_path / "o.mp4", {}, ImageError, "is a folder"),
        (Path("-"), tmp_path / "o.mp4", {}, ImageError, "cannot read a video from stdin"),
        (Path(os.devnull), tmp_path / "o.mp4", {}, ImageError, "not a regular file"),
        (tmp_path / "zero.mp4", tmp_path / "o.mp4", {}, ImageError, "as a video"),
        (wide, tmp_path / "o.mp4", {}, InputError, r"h264 cannot store frames of 16400x16 \(.*\); .* --max-side"),
        (wide, tmp_path / "o.mp4", {"codec": "hevc"}, InputError, "hevc cannot store frames of 16400x16"),
        (silent, tmp_path / "folder.mp4", {}, InputError, "is a folder; give --output a file"),
        (silent, tmp_path / "same.mp4", {}, InputError, "would be overwritten"),
        (tmp_path / "text.mp4", tmp_path / "o.mp4", {}, ImageError, "as a video"),
        (silent, silent, {}, InputError, "would be overwritten"),
        (silent, tmp_path / "o.avi", {}, InputError, r"o.avi as a video; give it one of the suffixes .mp4"),
        (silent, tmp_path / "o", {}, InputError, "/o as a video; give it one of the suffixes"),
        (silent, tmp_path / "o.webm", {}, InputError, "cannot hold h264"),
        (video, tmp_path / "o.webm", {"codec": "vp9"}, InputError, "cannot hold aac"),
        (silent, tmp_path / "o.mp4", {"crf": 60}, InputError, "--crf is 60; for h264 give 0 .best. to 51"),
        (silent, tmp_path / "o.mp4", {"style": "0:negative, 2s:none"}, UnknownStyle, "no style 'none'; it has: "),
        (silent, tmp_path / "o.mp4", {"style": "0:negative, 2s:negatif"}, UnknownStyle, r"did you mean 'negative'\?"),
        (silent, tmp_path / "o.mp4", {"style": "same:1,black:1"}, InputError, "interpolate styles of one model"),
    ]
    for source, target, options, error, words in cases:
        with pytest.raises(error, match=words):
            stylized(source, target, **options)
    there = ["folder.mp4", "same.mp4", "silent.mp4", "text.mp4", "wide.mkv", "zero.mp4"]
    assert sorted(file.name for file in tmp_path.iterdir()) == there


def test_an_image_of_a_song_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "s.wav"), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        tone.rate = 8000
        output.mux(stream.encode(tone))
    with pytest.raises(ImageError, match="no video stream"):
        VideoSource(tmp_path / "s.wav")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> MockTransport:
    """Every client connects to it."""
    transport = MockTransport(stylize, MODELS)
    monkeypatch.setattr(nst_client.base_client, "connect", lambda url, **settings: transport)
    return transport


def test_the_command(video: Path, tmp_path: Path, served: MockTransport) -> None:
    result = CliRunner().invoke(video_app, [str(video), "-o", str(tmp_path / "o.mp4"), "-s", "negative", "--smooth"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    output = result.stderr.replace("\n", " ")
    assert "frames 100/100  0:00 left" in output and "frames/s" in output
    assert f"{video} -> {tmp_path / 'o.mp4'}  96x64  100 frames" in output
    assert "warping error" in output and "before smoothing" in output
    assert len(seen(tmp_path / "o.mp4").images) == 100


def test_the_figures_as_json(tmp_path: Path, served: MockTransport) -> None:
    whole = clip(tmp_path / "w.mp4", panned(20, 95, 63, step=6), pix_fmt="yuv444p")
    source = broken(tmp_path / "s.mp4", whole, [19])
    result = CliRunner().invoke(video_app, [str(source), "-o", str(tmp_path / "o.mp4"), "-s", "same", "--json"])
    figures = json.loads(result.stdout)
    assert (figures["frames"], figures["repeated"], figures["stylized"]) == (20, 1, 20)
    assert (figures["width"], figures["height"], figures["padded"]) == (96, 64, True)
    assert figures["frames_per_second"] > 0 and figures["warping_error_before"] is None


def test_a_stop_says_how_far_it_came(video: Path, tmp_path: Path, served: MockTransport) -> None:
    served.handler = Flicker(70)
    command = [str(video), "-o", str(tmp_path / "o.mp4"), "-s", "same"]
    result = CliRunner().invoke(video_app, command)
    assert result.exit_code == 1
    assert "of 100 frames are done; run the same command to continue" in result.stderr and "no more" in result.stderr
    served.handler = Flicker()
    refused = CliRunner().invoke(video_app, [*command, "--crf", "20"])
    assert refused.exit_code == 1 and len(refused.stderr.splitlines()) == 1
    assert "has 48 frames with --crf 18, not 20; give --restart" in refused.stderr
    assert "resuming after frame 48 of 100" in CliRunner().invoke(video_app, command).stderr
    served.handler = Flicker(70)
    CliRunner().invoke(video_app, command)
    served.handler = stylize
    refused = CliRunner().invoke(video_app, command)
    assert refused.exit_code == 1 and "now gives a different result" in refused.stderr
    assert "run the same command" not in refused.stderr
    assert "resuming" not in CliRunner().invoke(video_app, [*command, "--crf", "20", "--restart"]).stderr


def test_without_the_extra(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "nst_apps.video.stylize")
    monkeypatch.setitem(sys.modules, "nst_apps.video.codec.decoder", None)
    monkeypatch.delitem(sys.modules, "nst_apps.video.codec.decoder")
    monkeypatch.setitem(sys.modules, "av", None)
    result = CliRunner().invoke(video_app, [str(video), "-o", str(tmp_path / "o.mp4"), "-s", "same"])
    assert result.exit_code == 1
    assert "the package 'av' is not installed; run pip install" in result.stderr and "[video]'" in result.stderr


def test_results_come_in_order_and_an_error_of_the_items_is_raised() -> None:
    def items() -> Any:
        yield from range(5)
        raise InputError("the sixth")

    async def work(n: int) -> int:
        await asyncio.sleep(0.002 * (5 - n))
        return n

    async def all_of_them() -> list[int]:
        found = []
        with pytest.raises(InputError, match="the sixth"):
            async for result in room.overlapped(items(), work, 3):
                found.append(result)
        return found

    assert asyncio.run(all_of_them()) == [0, 1, 2, 3, 4]


def test_a_caller_that_stops_leaves_no_task() -> None:
    async def some() -> int:
        generator = room.overlapped(iter(range(100)), _slowly, 3)
        async for _ in generator:
            break
        await generator.aclose()
        return len(asyncio.all_tasks())

    assert asyncio.run(some()) == 1


async def _slowly(n: int) -> Pixels:
    await asyncio.sleep(0.001)
    return np.zeros((1, 1, 3), np.uint8)
