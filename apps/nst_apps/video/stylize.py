"""Stylize a video frame by frame: decode ahead, send requests in parallel, encode parts and join them.

The parts are in a folder beside the output. Each has `PART_FRAMES` frames and appears whole, so a run that was killed
continues after the last of them: no frame is lost or repeated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Self, TypeVar

from nst_apps.video.codec.decoder import VideoSource
from nst_apps.video.codec.encoder import check_target
from nst_apps.video.codec.formats import Frame, output_sides
from nst_apps.video.codec.joining import join_parts
from nst_apps.video.flow import Motion, motion
from nst_apps.video.parts import Parts
from nst_apps.video.schedule import Moment
from nst_apps.video.settings import VideoSettings
from nst_client.client import AsyncStyleClient
from nst_client.styles import resolve_style_weights, unknown_style
from nst_client.stylize.processing import postprocess
from nst_core.errors import InputError
from nst_core.images import Pixels, blend

PREVIEW_SECONDS = 5.0
"""Duration of a preview."""

T = TypeVar("T")
R = TypeVar("R")
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class VideoResult:
    """The result of stylizing a video."""

    sides: tuple[int, int]
    """Width and height of the output in pixels."""
    padded: bool
    """Whether an odd side was padded to an even one."""
    frames: int
    """Number of frames."""
    repeated: int
    """Number of frames that could not be decoded and repeat the previous one."""
    stylized: int
    """Number of frames that this run stylized."""
    seconds: float
    """Time in which it stylized them."""
    warping_error: tuple[float, float] | None
    """Warping error (of 255) before and after smoothing; None without smoothing."""


def stylize_video(
    source: Path,
    target: Path,
    settings: VideoSettings,
    connect: Callable[[], AsyncStyleClient],
    *,
    concurrency: int = 3,
    restart: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> VideoResult:
    """Stylize a video file, continuing where an earlier run was stopped.

    Frame rate, time stamps, sound and orientation are kept. If an asyncio loop is already running, as in a notebook,
    the work runs in a separate thread, which also calls `connect` and `on_progress`.

    Args:
        source: The content video, in any format that FFmpeg reads.
        target: The output file, .mp4, .mov, .mkv or .webm.
        settings: How the video is stylized and stored.
        connect: Creates the client.
        concurrency: Number of requests in parallel.
        restart: Whether to discard the finished parts of an earlier run.
        on_progress: Called with the number of finished frames and of all frames, once before the first.

    Raises:
        ImageError: `source` is not a video.
        InputError: A setting is invalid, or the finished parts belong to other settings, another video or style.
        WriteError: The output cannot be written.
        ServiceError: As in `StyleClient.stylize`. The finished parts are kept after every error.
    """
    if source.resolve() == target.resolve() or (target.exists() and source.exists() and target.samefile(source)):
        raise InputError(f"{source} would be overwritten; choose another --output")
    source_video = VideoSource(source, max_side=settings.max_side)
    check_target(target, settings.codec, settings.crf, source_video)
    return run_to_completion(_Run(source_video, target, settings, concurrency, on_progress).stylize(connect, restart))


def run_to_completion(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in a new event loop, in a new thread if the caller's has a running loop, and return its result.

    Ctrl-C in the caller's thread cancels the work.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def run() -> T:
        task = asyncio.current_task()
        assert task is not None
        begun.set_result((asyncio.get_running_loop(), task))
        return await work

    with ThreadPoolExecutor(1, "nst-video") as threads:
        result = threads.submit(asyncio.run, run())
        try:
            return result.result()
        except BaseException:
            if not result.done():  # Ctrl-C here
                loop, task = begun.result()
                with suppress(RuntimeError):  # the loop is closed: the work has ended meanwhile
                    loop.call_soon_threadsafe(task.cancel)
            raise


async def to_the_end(work: Callable[..., T], *arguments: Any) -> T:
    """Run `work` in a thread, and wait for its end even when cancelled.

    Its file is closed next, and libav ends the process if a file is closed while another thread encodes to it.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


class _Run:
    def __init__(
        self, source: VideoSource, target: Path, settings: VideoSettings, concurrency: int, on_progress: OnProgress
    ) -> None:
        self.source, self.target, self.settings = source, target, settings
        self.concurrency, self.on_progress = concurrency, on_progress
        self.seconds = PREVIEW_SECONDS if settings.preview else None
        self.total = source.total
        if self.seconds is not None:
            self.total = min(self.total, round(self.seconds * source.format.rate))

    async def stylize(self, connect: Callable[[], AsyncStyleClient], restart: bool) -> VideoResult:
        async with connect() as client:
            stylizer = await FrameStylizer.of(client, self.settings)
            with Parts.of(self.source, self.target, self.settings, restart) as parts:
                done, started = parts.frames, time.perf_counter()
                await self._stylize_parts(stylizer, parts)
                seconds = time.perf_counter() - started
                join = partial(join_parts, parts.files, self.source, self.target, cut=self.settings.preview)
                await to_the_end(join)
                parts.remove()
        error = parts.smoother.warping_error if self.settings.smooth else None
        form = self.source.format
        sides = output_sides(form, self.settings.codec)
        padded = sides != (form.width, form.height)
        return VideoResult(sides, padded, parts.frames, self.source.repeated, parts.frames - done, seconds, error)

    async def _stylize_parts(self, stylizer: FrameStylizer, parts: Parts) -> None:
        done = parts.frames
        self.on_progress(done, max(self.total, done))
        # The last finished frame is needed for motion, and to check that the style is still the same.
        frames = self.source.frames(skip=max(0, done - 1), seconds=self.seconds)
        first: Frame | None = None
        if done:
            first = await asyncio.to_thread(next, frames, None)
            if first is None:
                raise InputError(
                    f"{self.source.path} has fewer frames than are finished; give --restart to start again"
                )
            again, _ = await stylizer.stylize(first, None, self._seconds_of(first))
            parts.compare(again)
        pairs = pairwise(chain((first,), frames))

        async def work(pair: tuple[Frame | None, Frame | None]) -> tuple[Frame, Motion | None]:
            before, frame = pair
            assert frame is not None
            return await stylizer.stylize(frame, before, self._seconds_of(frame))

        async with aclosing(overlapped(pairs, work, self.concurrency)) as results:
            async for frame, moved in results:
                await to_the_end(parts.add, frame, moved)
                done += 1
                self.on_progress(done, max(self.total, done))
        await to_the_end(parts.finish)

    def _seconds_of(self, frame: Frame) -> float:
        return float((frame.pts - self.source.start) * self.source.format.time_base)


class FrameStylizer:
    """Stylizes frames with a client, according to the settings."""

    def __init__(self, client: AsyncStyleClient, settings: VideoSettings, models: Mapping[str, str]) -> None:
        self.client, self.settings, self._models = client, settings, models

    @classmethod
    async def of(cls, client: AsyncStyleClient, settings: VideoSettings) -> Self:
        """Check the styles. Raises `UnknownStyle`, or `InputError` for invalid weights."""
        offered = {style.name: style for style in await client.styles()}
        for weights in settings.schedule.style_weights:
            if missing := [name for name in weights if name not in offered]:
                raise unknown_style(client.url, missing[0], offered)
            resolve_style_weights([offered[name] for name in weights], list(weights.values()))
        return cls(client, settings, {name: style.model for name, style in offered.items()})

    async def stylize(self, frame: Frame, before: Frame | None, seconds: float) -> tuple[Frame, Motion | None]:
        """Stylize a frame; also return its motion since the frame `before` if smoothing needs it."""
        settings, moving = self.settings, None
        if settings.smooth and before is not None:
            moving = asyncio.create_task(asyncio.to_thread(motion, before.pixels, frame.pixels))
        try:
            pixels = await self._styled(frame.pixels, settings.schedule.at(seconds))
            if settings.preserve_color or settings.strength < 1:
                pixels = await asyncio.to_thread(
                    postprocess, frame.pixels, pixels, settings.strength, settings.preserve_color
                )
            return replace(frame, pixels=pixels), await moving if moving else None
        finally:
            if moving:
                moving.cancel()  # does nothing if it is done

    async def _styled(self, pixels: Pixels, moment: Moment) -> Pixels:
        """Stylize with the weights of one model, or blend the images of two."""
        weights = moment.combined
        if moment.fraction in (0.0, 1.0) or len({self._models[name] for name in weights}) == 1:
            return await self.client.stylize(pixels, {name: weight for name, weight in weights.items() if weight})
        first, second = await asyncio.gather(
            self.client.stylize(pixels, moment.before), self.client.stylize(pixels, moment.after)
        )
        return await asyncio.to_thread(blend, first, second, moment.fraction)


async def overlapped(
    items: Iterable[T], work: Callable[[T], Awaitable[R]], concurrency: int
) -> AsyncGenerator[R, None]:
    """Yield the results of `work` in the order of the items, with `concurrency` calls running ahead.

    Items are fetched ahead in a thread, since that may take time too.
    """
    iterator = iter(items)
    room = asyncio.Semaphore(concurrency)
    queue: asyncio.Queue[asyncio.Task[R] | None] = asyncio.Queue(concurrency)
    tasks: set[asyncio.Task[R]] = set()

    async def work_on(item: T) -> R:
        try:
            return await work(item)
        finally:
            room.release()

    async def fetch() -> None:
        error: Exception | None = None
        try:
            while (item := await asyncio.to_thread(_next, iterator)) is not None:
                await room.acquire()
                task = asyncio.create_task(work_on(item[0]))
                tasks.add(task)
                await queue.put(task)
        except Exception as failed:
            error = failed
        await queue.put(None)
        if error:
            raise error

    fetching = asyncio.create_task(fetch())
    try:
        while (task := await queue.get()) is not None:
            yield await task
            tasks.discard(task)
        await fetching
    finally:
        for left in (fetching, *tasks):
            left.cancel()
        await asyncio.gather(fetching, *tasks, return_exceptions=True)


def _next(iterator: Iterator[T]) -> tuple[T] | None:
    """Return the next item in a tuple, or None at the end; a coroutine cannot raise StopIteration."""
    for item in iterator:
        return (item,)
    return None
