"""`nst webcam` with a server that is a function, and with SDL's window that needs no screen."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import nst_client.base_client
from nst_apps.video import webcam as room
from nst_apps.video.cli import webcam_app
from nst_apps.video.webcam import LiveFrame, LiveStatistics, Newest, file_frames, show_live, style_for_key
from nst_client import MockTransport, Request, Unreachable
from nst_client.transports.base import Array
from nst_core.contract import IMAGE
from nst_core.errors import InputError
from nst_core.images import Pixels

from .clips import apart, clip, panned, seen

MODELS: dict[str, dict[str, str]] = {"black": {}, "negative": {}, "same": {}}


def stylize(request: Request) -> Array:
    pixels = request.inputs[IMAGE]
    return {"black": np.zeros_like(pixels), "negative": 255 - pixels}.get(request.model, pixels)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> MockTransport:
    """Every client connects to it."""
    transport = MockTransport(stylize, MODELS)
    monkeypatch.setattr(nst_client.base_client, "connect", lambda url, **settings: transport)
    return transport


@pytest.fixture
def no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


class Camera:
    """Frames whose pixels are their number; they come when the server lets them, as a clock would."""

    def __init__(self, frames: int) -> None:
        self.frames, self.given = frames, 0
        self._changed = threading.Condition()
        self._due = 1

    def _is_due(self, count: int) -> bool:
        return self._due >= count

    def __iter__(self) -> Iterator[LiveFrame]:
        for number in range(self.frames):
            with self._changed:
                self.given = number  # the one before is where it goes
                self._changed.notify_all()
                assert self._changed.wait_for(partial(self._is_due, number + 1), 30)
            yield LiveFrame(np.full((16, 16, 3), number, np.uint8), number, time.monotonic())
        with self._changed:
            self.given = self.frames
            self._changed.notify_all()

    def pass_by(self, frames: int) -> None:
        """So many more frames come, and are put where the newest one lies."""
        with self._changed:
            self._due += frames
            self._changed.notify_all()
            goal = min(self._due, self.frames)
            assert self._changed.wait_for(lambda: self.given >= goal, 30)


@pytest.mark.parametrize("slow", [1, 4, 9])
def test_frames_are_dropped_and_never_old(slow: int) -> None:
    """A server that takes as long as `slow` frames of the camera: what it answers is never two of its own times old.

    Time is counted in frames of the camera, which the server itself lets pass, so no load can disturb it.
    """
    source = Camera(100)
    ages: list[int] = []
    numbers: list[int] = []

    def stylize_slowly(pixels: Pixels) -> Pixels:
        number = int(pixels[0, 0, 0])
        source.pass_by(slow)
        ages.append(source.given - 1 - number)
        numbers.append(number)
        return pixels

    statistics = show_live(source, stylize_slowly, lambda frame, statistics: True)
    assert statistics.taken == 100
    assert numbers[:-1] == list(range(0, 100, slow))[: len(numbers) - 1]
    assert max(ages) <= slow < 2 * slow
    assert all(later - earlier <= slow for earlier, later in pairwise(numbers))
    assert len(numbers) == pytest.approx(100 / slow, abs=2)


def test_a_slow_window_makes_nothing_old_either() -> None:
    """Stylized frames that nobody looks at in time are replaced by newer ones."""
    done = threading.Event()
    frames = [LiveFrame(np.zeros((16, 16, 3), np.uint8), number, 0.0) for number in range(50)]
    shown: list[int] = []

    def source() -> Iterator[LiveFrame]:
        yield from frames
        done.set()

    def show(frame: LiveFrame | None, statistics: LiveStatistics) -> bool:
        assert done.wait(30)  # the window is busy until the camera has ended
        if frame is not None:
            shown.append(frame.number)
        return True

    show_live(source(), lambda pixels: pixels, show)
    assert shown == sorted(shown) and shown[-1] == 49 and len(shown) <= 4


def test_the_newest_replaces_what_waits() -> None:
    room_for_one = Newest[int]()
    assert room_for_one.take(0.0) is None
    for number in (1, 2, 3):
        assert room_for_one.put(number)
    assert (room_for_one.take(), room_for_one.replaced) == (3, 2)
    room_for_one.put(4)
    room_for_one.close()
    assert not room_for_one.put(5)
    assert room_for_one.take() == 4
    with pytest.raises(EOFError):
        room_for_one.take()


def test_what_goes_wrong_in_a_thread_is_raised() -> None:
    def source() -> Iterator[LiveFrame]:
        yield LiveFrame(np.zeros((16, 16, 3), np.uint8), 0, 0.0)
        raise InputError("the camera fell down")

    def fails(pixels: Pixels) -> Pixels:
        raise Unreachable("nobody there")

    with pytest.raises(InputError, match="fell down"):
        show_live(source(), lambda pixels: pixels, lambda frame, statistics: True)
    with pytest.raises(Unreachable, match="nobody there"):
        show_live(iter([LiveFrame(np.zeros((16, 16, 3), np.uint8), 0, 0.0)]), fails, lambda frame, statistics: True)


def test_a_window_that_is_closed_ends_it() -> None:
    stopped: list[bool] = []

    def endless() -> Generator[LiveFrame, None, None]:
        try:
            number = 0
            while True:
                yield LiveFrame(np.zeros((16, 16, 3), np.uint8), number, 0.0)
                number += 1
        finally:
            stopped.append(True)

    source = endless()
    show_live(source, lambda pixels: pixels, lambda frame, statistics: statistics.shown < 3)
    source.close()
    assert stopped == [True]


def test_a_file_is_played_in_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of our own: frames of a variable rate come when they are due, and were taken then."""
    now = 100.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    source = clip(tmp_path / "s.mp4", panned(4, 32, 32), stamps=[0, 512, 6400, 12_800])
    moments = []
    for frame in file_frames(source, None):
        moments.append((frame.taken, now))
        now += 0.01  # decoding takes its time, and the next is not later for it
    assert [taken for taken, _ in moments] == pytest.approx([100.0, 100.04, 100.5, 101.0])
    assert [when for _, when in moments] == pytest.approx([100.0, 100.04, 100.5, 101.0])


def test_a_video_as_the_camera_recorded(tmp_path: Path, server: MockTransport) -> None:
    frames = panned(20, 64, 48)
    source = clip(tmp_path / "s.mp4", frames)
    command = ["--input", str(source), "--no-window", "--record", str(tmp_path / "o.mp4"), "-s", "negative", "--json"]
    result = CliRunner().invoke(webcam_app, command)
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    recorded = seen(tmp_path / "o.mp4")
    assert figures["taken"] == 20 and figures["shown"] == len(recorded.images) >= 1
    assert figures["latency_ms"] > 0 and figures["recorded"] == str(tmp_path / "o.mp4")
    given = [apart(255 - image, recorded.images[0]) for image in seen(source).images]
    assert min(given) < 5.0
    assert recorded.milliseconds == sorted(recorded.milliseconds) and recorded.milliseconds[-1] <= 800
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.mp4", "s.mp4"]


def test_nothing_is_recorded_of_nothing(tmp_path: Path, server: MockTransport) -> None:
    source = clip(tmp_path / "s.mp4", panned(3, 32, 32))

    def broken(request: Request) -> Array:
        raise Unreachable("mock: is gone")

    server.handler = broken
    command = ["--input", str(source), "--no-window", "--record", str(tmp_path / "o.mp4")]
    result = CliRunner().invoke(webcam_app, command)
    assert result.exit_code == 1 and "is gone" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["s.mp4"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-s", "none"], "no style 'none'; it has: black, negative, same"),
        (["-s", "negatif"], "no style 'negatif'; did you mean 'negative'?"),
        (["--input", "none.mp4"], "no such file"),
        (["--input", "none.mp4", "--record", "o.avi"], "o.avi as a video"),
        (["--camera", "99"], "camera 99 gives no images"),
    ],
)
def test_what_cannot_be(options: list[str], words: str, server: MockTransport) -> None:
    result = CliRunner().invoke(webcam_app, ["--no-window", *options])
    assert result.exit_code == 1
    assert words in result.stderr.replace("\n", " ")


@pytest.mark.usefixtures("no_screen")
def test_keys_choose_the_style_and_end(tmp_path: Path, server: MockTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real window of SDL, and real events in its queue: one key each time that a frame was shown."""
    import pygame

    frames = panned(3, 64, 48)
    presses = [pygame.K_2, pygame.K_RIGHT, pygame.K_q]
    shown: list[tuple[str, Pixels]] = []
    real = room.Window.show

    def show(self: room.Window, pixels: Pixels, text: str) -> None:
        real(self, pixels, text)
        surface = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
        shown.append((text.split()[0], np.array(surface)))
        settled = (
            len(presses) > 1 or apart(shown[-1][1][:20], frames[0][:20]) == 0.0
        )  # a frame may be older than its name
        if presses and settled and shown[-1][0] == MODEL_NAMES[3 - len(presses)]:
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=presses.pop(0)))

    def endless(path: Path, max_side: int | None) -> Iterator[LiveFrame]:
        number = 0
        while True:
            yield LiveFrame(frames[0], number, time.monotonic())
            number += 1

    monkeypatch.setattr(room.Window, "show", show)
    monkeypatch.setattr(room, "file_frames", endless)
    result = CliRunner().invoke(webcam_app, ["--input", "camera", "--style", "black"])
    assert result.exit_code == 0, result.stderr
    assert not presses and "latency" in result.stderr
    names = [name for name, _ in shown]
    assert sorted(set(names)) == MODEL_NAMES and names == sorted(names)
    assert (shown[0][1][:20] == 0).all()
    assert apart(shown[-1][1][:20], frames[0][:20]) == 0.0


MODEL_NAMES = ["black", "negative", "same"]


@pytest.mark.usefixtures("no_screen")
def test_an_image_fills_the_window_and_keeps_its_shape() -> None:
    import pygame

    window = room.Window("test")
    window.show(np.full((48, 64, 3), 200, np.uint8), "x")
    pygame.display.set_mode((200, 96), pygame.RESIZABLE)
    window.show(np.full((48, 64, 3), 200, np.uint8), "x")
    seen_now = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
    assert seen_now.shape == (96, 200, 3)
    assert (seen_now[:70, 36:164] == 200).all()
    assert (seen_now[:70, :36] == 0).all() and (seen_now[:70, 164:] == 0).all()
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    keys = window.keys()
    assert "escape" in keys
    window.close()


def test_where_there_is_no_screen(monkeypatch: pytest.MonkeyPatch, server: MockTransport, tmp_path: Path) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    source = clip(tmp_path / "s.mp4", panned(3, 32, 32))
    result = CliRunner().invoke(webcam_app, ["--input", str(source)])
    assert result.exit_code == 1
    assert "--no-window --record video.mp4" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("key", "style"), [("1", "a"), ("3", "c"), ("4", "b"), ("right", "c"), ("left", "a"), ("space", "c"), ("x", "b")]
)
def test_the_style_of_a_key(key: str, style: str) -> None:
    assert style_for_key(["a", "b", "c"], "b", key) == style


def test_a_camera_that_is_not_there_is_one_line() -> None:
    """Also of what OpenCV's own code would write to the process's stderr."""
    code = (
        "from nst_apps.video.webcam import camera_frames\n"
        "try:\n    next(camera_frames(99, None))\n"
        "except Exception as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "camera 99 gives no images" in result.stdout and result.stderr == ""


def test_json_is_all_on_stdout_beside_a_window(tmp_path: Path) -> None:
    """As a process, whose first window it is: the window's library says nothing there."""
    code = (
        "import sys\n"
        "from nst_client import MockTransport, StyleClient\n"
        "from nst_client import base_client\n"
        "base_client.connect = lambda *arguments, **options: MockTransport(lambda request: request.inputs['image'])\n"
        "from nst_apps.video.cli import webcam_app\n"
        "webcam_app()\n"
    )
    source = clip(tmp_path / "s.mp4", panned(3, 32, 32))
    environment = {**os.environ, "SDL_VIDEODRIVER": "dummy"}
    command = [sys.executable, "-c", code, "--input", str(source), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["taken"] == 3


def test_the_arrows_go_round() -> None:
    assert style_for_key(["a", "b"], "b", "right") == "a"
    assert style_for_key(["a", "b"], "a", "left") == "b"
