"""`nst video` and `nst webcam` as processes against a real Triton; OpenCV reads what they write."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from nst_apps.video.parts import PART_FRAMES
from nst_bench.served.server import ModelServer
from nst_bench.suite import Context
from nst_bench.suites import video as suite
from nst_core.devices import Device

from ..apps.clips import apart, clip, panned, seen, sound
from .serving import BIN, Models, Server, run, serve, succeeded

FRAMES = 10 * PART_FRAMES
WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope="module")
def server(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = serve(models.repository, tmp_path_factory.mktemp("video") / "triton.log")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten parts with sound."""
    frames = panned(60, WIDTH, HEIGHT, step=4)
    there_and_back = [*frames, *frames[::-1]]
    return clip(
        tmp_path_factory.mktemp("video") / "video.mp4", there_and_back * (FRAMES // len(there_and_back)), sound=True
    )


@pytest.fixture(scope="module")
def stylized(server: Server, video: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """The whole video in one run, smoothed, and its figures."""
    target = tmp_path_factory.mktemp("stylized") / "o.mp4"
    result = run("nst", "video", video, "-o", target, "-s", "starry", "--smooth", "--json", "-u", server.endpoints.grpc)
    succeeded(result)
    return target, json.loads(result.stdout)


def test_a_video_is_stylized_as_its_frames_are(server: Server, models: Models, video: Path, tmp_path: Path) -> None:
    """By HTTP; the decoder, the encoder and both their colours cost a little, another frame many."""
    target = tmp_path / "o.mp4"
    succeeded(run("nst", "video", video, "-o", target, "-s", "starry", "--crf", 8, "-u", server.endpoints.http))
    before, after = seen(video), seen(target)
    assert len(after.images) == FRAMES
    assert after.milliseconds == pytest.approx(before.milliseconds)
    assert sound(target) == sound(video)
    numbers = [0, PART_FRAMES - 1, PART_FRAMES, 200, FRAMES - 1]
    for number, expected in zip(numbers, models.stylized(np.stack([before.images[n] for n in numbers])), strict=True):
        assert apart(expected, after.images[number]) < 12.0
        assert apart(expected, after.images[(number + 30) % FRAMES]) > 24.0


def test_killed_and_started_again_no_frame_is_lost_or_doubled(
    server: Server, video: Path, stylized: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    """`kill -9` while it stylizes, twice, and then Ctrl-C; the result is that of a run that nobody stopped."""
    target, kill = tmp_path / "o.mp4", signal.SIGKILL
    parts = tmp_path / "o.mp4.parts"
    command = [*("nst", "video", video, "-o", target, "-s", "starry", "--smooth", "--json", "-j", 1)]
    command += ["-u", server.endpoints.grpc]
    for finished, sign, status in ((1, kill, -kill), (3, kill, -kill), (5, signal.SIGINT, 130)):
        process = subprocess.Popen([str(BIN / "nst"), *map(str, command[1:])], stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while len(list(parts.glob("[0-9]*.nut"))) < finished:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(sign)
        _, messages = process.communicate(timeout=60)
        assert process.returncode == status
        assert not target.exists()
    assert f"of {FRAMES} frames are done; run the same command to continue" in messages
    assert not list(parts.glob("begun-*"))  # Ctrl-C leaves nothing that is half written
    kept = len(list(parts.glob("[0-9]*.nut")))
    result = run(*command)
    assert f"resuming after frame {kept * PART_FRAMES} of {FRAMES}" in succeeded(result)
    figures = json.loads(result.stdout)
    assert figures["frames"] == FRAMES and figures["stylized"] == FRAMES - kept * PART_FRAMES
    whole, figures_of_whole = stylized
    assert figures["warping_error_before"] == pytest.approx(figures_of_whole["warping_error_before"])
    assert figures["warping_error_after"] == pytest.approx(figures_of_whole["warping_error_after"])
    in_one_go, in_parts = seen(whole), seen(target)
    assert in_one_go.milliseconds == in_parts.milliseconds
    assert sound(target) == sound(video)
    assert max(apart(a, b) for a, b in zip(in_one_go.images, in_parts.images, strict=True)) < 6.0
    moves = [apart(a, b) for a, b in pairwise(in_parts.images)]
    assert sum(move < 3.0 for move in moves) == sum(apart(a, b) < 3.0 for a, b in pairwise(in_one_go.images))
    assert [path.name for path in tmp_path.iterdir()] == ["o.mp4"]


def test_smoothing_lessens_the_warping_error(stylized: tuple[Path, dict[str, object]]) -> None:
    _, figures = stylized
    before, after = figures["warping_error_before"], figures["warping_error_after"]
    assert isinstance(before, float) and isinstance(after, float)
    assert 0 < after < 0.7 * before


def test_styles_of_two_served_models_fade(server: Server, video: Path, tmp_path: Path) -> None:
    """From `starry` to `a`: the beginning is all the first, the end all the second, and between it is neither."""
    targets = {style: tmp_path / f"{n}.mp4" for n, style in enumerate(["starry", "a", "0:starry, 1s:a"])}
    images = {}
    for style, target in targets.items():
        command = (
            "nst",
            "video",
            video,
            "-o",
            target,
            "-s",
            style,
            "--preview",
            "--crf",
            4,
            "-u",
            server.endpoints.grpc,
        )
        succeeded(run(*command))
        images[style] = seen(target).images
        assert len(images[style]) == 125
    starry, a, fading = (images[style] for style in targets)
    far = apart(starry[37], a[37])
    assert far > 10
    assert apart(fading[20], starry[20]) < far / 8 and apart(fading[70], a[70]) < far / 8
    assert min(apart(fading[37], starry[37]), apart(fading[37], a[37])) > far / 4


def test_the_webcam_with_a_file_in_its_place(server: Server, models: Models, tmp_path: Path) -> None:
    source = clip(tmp_path / "s.mp4", panned(25, WIDTH, HEIGHT, step=4))
    target = tmp_path / "o.mkv"
    result = run(
        *("nst", "webcam", "--input", source, "--no-window", "--record", target, "-s", "starry", "--json"),
        *("-u", server.endpoints.grpc),
    )
    succeeded(result)
    figures = json.loads(result.stdout)
    recorded = seen(target)
    assert figures["taken"] == 25 and figures["shown"] == len(recorded.images) >= 1
    assert (np.diff(recorded.milliseconds) > 0).all()
    expected = models.stylized(np.stack(seen(source).images))
    best = [int(np.argmin([apart(reference, image) for reference in expected])) for image in recorded.images]
    assert best == sorted(best) and len(set(best)) == len(best)


def test_a_server_that_is_not_there(video: Path, tmp_path: Path) -> None:
    command = ("-s", "starry", "-u", "grpc://127.0.0.1:9", "--timeout", 1)
    for name, *arguments in (("video", video, "-o", tmp_path / "o.mp4"), ("webcam", "--input", video, "--no-window")):
        result = run("nst", name, *arguments, *command)
        assert result.returncode == 1
        assert result.stderr.startswith("error: ") and "127.0.0.1:9" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_the_bench_measures(server: Server, models: Models) -> None:
    """All ways, every frame of the video that is not dropped, and rates that are those of the whole run."""
    context = Context(Device("cpu", "for this test"), suite.VideoEffort(frames=16, rounds=2))
    running = ModelServer("starry", models.repository, server.endpoints, server.process, 0.0)
    document = json.loads(json.dumps(suite.measure(context, running)))
    rows = {row["way"]: row for row in document["rows"]}
    assert list(rows) == [suite.BARE, suite.FILE, suite.WINDOW, suite.PAGE, f"{suite.WINDOW}, latency"]
    assert rows[suite.BARE]["n"] == rows[suite.FILE]["n"] == 32
    assert rows[f"{suite.WINDOW}, latency"]["taken"] == 32
    for way in (suite.BARE, suite.FILE, suite.WINDOW):
        rounds, bare = rows[way]["rounds"], rows[suite.BARE]["rounds"]
        assert len(rounds) == 2
        assert rows[way]["frames_per_second"] == pytest.approx(median(rounds))
        fractions = [rate / other for rate, other in zip(rounds, bare, strict=True)]
        assert rows[way]["share_of_bare"] == pytest.approx(median(fractions))
    assert rows[suite.WINDOW]["frames_per_second"] < 1.5 * document["film_rate"]
    if shutil.which("chromium"):
        assert rows[suite.PAGE]["n"] >= 2 * 2
        assert 0 < rows[suite.PAGE]["frames_per_second"] < 1.5 * document["film_rate"]
    else:
        assert "no chromium" in rows[suite.PAGE]["missing"]
    assert "| file to file |" in "\n".join(suite.SUITE.tables(document))
