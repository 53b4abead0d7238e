"""Stylize a camera's frames and show them live.

Three threads: one takes frames, one stylizes them, and the caller's shows them. Each passes on only its newest frame,
so a slow server reduces the frame rate and not the freshness: a frame waits at most for the one before it, and is
shown before two more are stylized.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

import cv2
import numpy as np

from nst_apps.video.codec.decoder import VideoSource
from nst_apps.video.codec.encoder import Encoder, check_target
from nst_apps.video.codec.formats import CONTAINERS, Frame, VideoFormat
from nst_client.stylize.runner import GRACE_SECONDS
from nst_core.errors import InputError
from nst_core.files import atomic_write
from nst_core.images import ImageData, Pixels, resize
from nst_core.process import default_variable

T = TypeVar("T")

TICK_SECONDS = Fraction(1, 90_000)
"""Unit of a recording's time stamps."""

KEY_POLL_SECONDS = 0.02
"""How often the window checks for pressed keys while it waits for a frame."""


@dataclass(frozen=True, eq=False)
class LiveFrame:
    """A frame `uint8 [H, W, 3]`, its number from 0, and when it was taken, in seconds of `time.monotonic`."""

    pixels: Pixels
    number: int
    taken: float


class Newest(Generic[T]):
    """Passes the newest item from one thread to another; an item that is not taken in time is replaced."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: T | None = None
        self._closed = False
        self._error: Exception | None = None
        self.replaced = 0

    def put(self, item: T) -> bool:
        """Put an item; returns False once it is closed."""
        with self._changed:
            if self._closed:
                return False
            self.replaced += self._item is not None
            self._item = item
            self._changed.notify_all()
            return True

    def take(self, seconds: float | None = None) -> T | None:
        """Wait for an item; returns None after `seconds`. Raises its error or `EOFError` when closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._item is not None or self._closed, seconds)
            item, self._item = self._item, None
            if item is None and self._closed:
                raise self._error or EOFError
            return item

    def close(self, error: Exception | None = None) -> None:
        """End the items; the last one may still be taken."""
        with self._changed:
            self._error = self._error or error
            self._closed = True
            self._changed.notify_all()


@dataclass
class LiveStatistics:
    """Counts taken and shown frames, and measures latency in seconds, from taking to showing a frame."""

    taken: int = 0
    latencies: list[float] = field(default_factory=list)
    _moments: deque[float] = field(default_factory=deque)
    _first: float = 0.0
    _last: float = 0.0

    def add(self, frame: LiveFrame) -> None:
        """Count a frame that is shown now."""
        now = time.monotonic()
        self._first, self._last = self._first or now, now
        self.latencies.append(now - frame.taken)
        self._moments.append(now)
        while len(self._moments) > 2 and now - self._moments[0] > 2.0:
            self._moments.popleft()

    @property
    def shown(self) -> int:
        """Number of shown frames."""
        return len(self.latencies)

    @property
    def rate(self) -> float:
        """Frames/s over the last two seconds."""
        first, last = (self._moments[0], self._moments[-1]) if self._moments else (0.0, 0.0)
        return (len(self._moments) - 1) / (last - first) if last > first else 0.0

    @property
    def mean_rate(self) -> float:
        """Frames/s over the whole run."""
        return (self.shown - 1) / (self._last - self._first) if self._last > self._first else 0.0

    def latency(self, percentile: float = 50.0) -> float:
        """Return a percentile of the latency in seconds; 0 if nothing was shown."""
        return float(np.percentile(self.latencies, percentile)) if self.latencies else 0.0


def show_live(
    frames: Iterable[LiveFrame],
    stylize: Callable[[Pixels], Pixels],
    show: Callable[[LiveFrame | None, LiveStatistics], bool],
) -> LiveStatistics:
    """Stylize and show frames live, until they end, `show` returns False, or Ctrl-C.

    `stylize` runs in a thread, one frame at a time. `show` runs in the caller's thread, with a stylized frame, or
    with None if none has arrived for a moment. Raises what `frames` and `stylize` raise.
    """
    statistics, fresh, stylized = LiveStatistics(), Newest[LiveFrame](), Newest[LiveFrame]()

    def take() -> None:
        for frame in frames:
            statistics.taken += 1
            if not fresh.put(frame):
                return

    def work() -> None:
        while frame := fresh.take():
            stylized.put(replace(frame, pixels=stylize(frame.pixels)))

    threads = [_thread(take, fresh), _thread(work, stylized)]
    try:
        while True:
            frame = stylized.take(KEY_POLL_SECONDS)
            if frame is not None:
                statistics.add(frame)
            if not show(frame, statistics):
                return statistics
    except (EOFError, KeyboardInterrupt):
        return statistics
    finally:
        fresh.close()
        deadline = time.monotonic() + GRACE_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def camera_frames(number: int, max_side: int | None) -> Iterator[LiveFrame]:
    """Yield the frames of a camera until it ends. Raises `InputError` if there is none with this number."""
    # The error below replaces what OpenCV would print about a missing camera.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    device = cv2.VideoCapture(number)
    try:
        good, image = device.read()
        if not good:
            raise InputError(f"camera {number} gives no images; choose another with --camera, or a video with --input")
        count = 0
        while good:
            taken = time.monotonic()
            yield LiveFrame(
                _shrunk(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8), max_side), count, taken
            )
            count += 1
            good, image = device.read()
    finally:
        device.release()


def file_frames(path: Path, max_side: int | None) -> Iterator[LiveFrame]:
    """Yield the frames of a file in real time; a frame counts as taken when it is due."""
    given = VideoSource(path, max_side=max_side)
    begun = time.monotonic()
    with closing(given.frames()) as frames:
        for number, frame in enumerate(frames):
            due = begun + float((frame.pts - given.start) * given.format.time_base)
            time.sleep(max(0.0, due - time.monotonic()))
            yield LiveFrame(frame.pixels, number, due)


class Recorder:
    """Records frames in a video file, each at the time it was taken; the file appears whole at the block's end."""

    def __init__(self, path: Path) -> None:
        check_target(path, "h264", None)
        self._path, self._open = path, ExitStack()
        self._encoder: Encoder | None = None
        self._begun = 0.0

    def add(self, frame: LiveFrame) -> None:
        """Add the next frame, of the same size as the others."""
        if self._encoder is None:
            height, width = frame.pixels.shape[:2]
            form = VideoFormat(width, height, TICK_SECONDS, Fraction(30))
            container = CONTAINERS[self._path.suffix.lower()]
            beside = self._open.enter_context(atomic_write(self._path))
            self._encoder = self._open.enter_context(Encoder(beside, form, "h264", container=container))
            self._begun = frame.taken
        self._encoder.add(Frame(frame.pixels, round((frame.taken - self._begun) / TICK_SECONDS)))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)


def _thread(work: Callable[[], None], closes: Newest[LiveFrame]) -> threading.Thread:
    """Start a daemon thread, which does not keep the process alive, and close `closes` with its end or error."""

    def run() -> None:
        try:
            work()
        except EOFError:
            closes.close()
        except Exception as error:
            closes.close(error)
        else:
            closes.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def _shrunk(pixels: Pixels, max_side: int | None) -> Pixels:
    height, width = pixels.shape[:2]
    longer = max(height, width)
    if max_side is None or longer <= max_side:
        return pixels
    return resize(ImageData(pixels), max(1, width * max_side // longer), max(1, height * max_side // longer)).pixels


class Window:
    """A window that shows images and reads keys. Raises `InputError` without a screen.

    It uses SDL through pygame-ce and not OpenCV's windows, since opencv-python and PyAV each bring a copy of the same
    X libraries, and OpenCV without windows runs on servers too.
    """

    def __init__(self, title: str) -> None:
        with default_variable("PYGAME_HIDE_SUPPORT_PROMPT", "1"):  # a greeting on stdout
            import pygame

        self._pygame = pygame
        try:
            pygame.display.init()
            pygame.display.set_caption(title)
        except pygame.error as error:
            raise InputError(
                f"cannot open a window ({error}); run without one: --no-window --record video.mp4"
            ) from error
        pygame.font.init()
        self._font = pygame.font.Font(None, 24)
        self._screen: pygame.Surface | None = None

    def show(self, pixels: Pixels, text: str) -> None:
        """Show an image `uint8 [H, W, 3]`, scaled to the window, with a line of text."""
        pygame = self._pygame
        height, width = pixels.shape[:2]
        if self._screen is None:
            self._screen = pygame.display.set_mode((width, height), pygame.RESIZABLE)
        screen = pygame.display.get_surface() or self._screen
        scale = min(screen.get_width() / width, screen.get_height() / height)
        sides = max(1, round(width * scale)), max(1, round(height * scale))
        image = pygame.image.frombuffer(np.ascontiguousarray(pixels).tobytes(), (width, height), "RGB")
        if sides != (width, height):
            image = pygame.transform.smoothscale(image, sides)
        screen.fill("black")
        screen.blit(image, ((screen.get_width() - sides[0]) // 2, (screen.get_height() - sides[1]) // 2))
        line = self._font.render(text, True, "white", "black")
        screen.blit(line, (0, screen.get_height() - line.get_height()))
        pygame.display.flip()

    def keys(self) -> list[str]:
        """Return the keys pressed since the last call, such as `2`, `right`, `escape`; a closed window is `escape`."""
        pygame = self._pygame
        names = []
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                names.append("escape")
            elif event.type == pygame.KEYDOWN:
                names.append(pygame.key.name(event.key).strip("[]"))
        return names

    def close(self) -> None:
        """Close the window."""
        self._pygame.display.quit()


def style_for_key(styles: list[str], now: str, key: str) -> str:
    """Return the style that a key selects: a number, right arrow or space for the next, left arrow for the previous."""
    if key.isdigit() and 1 <= int(key) <= len(styles):
        return styles[int(key) - 1]
    step = {"right": 1, "space": 1, "left": -1}.get(key, 0)
    return styles[(styles.index(now) + step) % len(styles)]
