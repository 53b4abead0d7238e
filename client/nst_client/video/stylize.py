"""A video stylized frame by frame: decoded ahead, several requests on their way, encoded in parts and joined.

The parts lie in a folder beside the result. Each holds `PART_FRAMES` frames and appears whole, so a run that was
killed goes on behind the last of them: no frame is lost, none comes twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Self, TypeVar

from nst_client.client import AsyncStyleClient
from nst_client.errors import UnknownStyle
from nst_client.styles import resolve_style_weights
from nst_client.stylize.processing import postprocess
from nst_client.video.codec.decoder import VideoSource
from nst_client.video.codec.encoder import check_target
from nst_client.video.codec.formats import Frame, output_sides
from nst_client.video.codec.joining import join_parts
from nst_client.video.flow import Motion, motion
from nst_client.video.parts import Parts
from nst_client.video.schedule import Moment
from nst_client.video.settings import VideoSettings
from nst_core.errors import InputError
from nst_core.images import Pixels, blend

PREVIEW_SECONDS = 5.0
"""Length of a preview."""

T = TypeVar("T")
R = TypeVar("R")
OnFrame = Callable[[int, int], None]


@dataclass(frozen=True)
class VideoResult:
    """What became of a video: `sides` of the file in pixels, `padded` if an odd one became even, and its frames.

    `repeated` of them stand for broken ones; `painted` were painted by this run, in so many `seconds`.
    `warping_error` is before and after smoothing, None without.
    """

    sides: tuple[int, int]
    padded: bool
    frames: int
    repeated: int
    painted: int
    seconds: float
    warping_error: tuple[float, float] | None


def stylize_video(
    source: Path,
    target: Path,
    settings: VideoSettings,
    connect: Callable[[], AsyncStyleClient],
    *,
    at_once: int = 3,
    restart: bool = False,
    on_frame: OnFrame = lambda done, total: None,
) -> VideoResult:
    """Paint the video `source` into the file `target`, going on where a run before was stopped.

    `at_once` requests are on their way together. `restart` removes the parts that a run before has finished.
    `on_frame` is called with the number of frames that are painted and of all, the first time before any. Frame rate,
    time stamps, sound and the side that is up are kept. Where a loop of asyncio runs already, as in a notebook, the
    work is done in a thread of its own, which calls `connect` and `on_frame` as well.

    Raises `ImageError` if `source` is no video, `InputError` for what cannot be and for finished parts of other
    settings, another video or style, `WriteError`, and what `StyleClient.stylize` raises; all leave the finished parts.
    """
    if source.resolve() == target.resolve() or (target.exists() and source.exists() and target.samefile(source)):
        raise InputError(f"{source} would be overwritten: choose another file than its own")
    given = VideoSource(source, max_side=settings.max_side)
    check_target(target, settings.codec, settings.crf, given)
    return completed(_Run(given, target, settings, at_once, on_frame).paint(connect, restart))


def completed(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns: in a loop of its own, in a thread of its own where the caller's runs one already.

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


class _Run:
    def __init__(
        self, given: VideoSource, target: Path, settings: VideoSettings, at_once: int, on_frame: OnFrame
    ) -> None:
        self.given, self.target, self.settings, self.at_once, self.on_frame = given, target, settings, at_once, on_frame
        self.seconds = PREVIEW_SECONDS if settings.preview else None
        self.total = given.total
        if self.seconds is not None:
            self.total = min(self.total, round(self.seconds * given.format.rate))

    async def paint(self, connect: Callable[[], AsyncStyleClient], restart: bool) -> VideoResult:
        async with connect() as client:
            painter = await FrameStylizer.of(client, self.settings)
            with Parts.of(self.given, self.target, self.settings, restart) as parts:
                done, started = parts.frames, time.perf_counter()
                await self._paint_parts(painter, parts)
                seconds = time.perf_counter() - started
                await asyncio.to_thread(join_parts, parts.files, self.given, self.target, cut=self.settings.preview)
                parts.remove()
        error = parts.smoother.warping_error if self.settings.smooth else None
        form = self.given.format
        sides = output_sides(form, self.settings.codec)
        padded = sides != (form.width, form.height)
        return VideoResult(sides, padded, parts.frames, self.given.repeated, parts.frames - done, seconds, error)

    async def _paint_parts(self, painter: FrameStylizer, parts: Parts) -> None:
        done = parts.frames
        self.on_frame(done, max(self.total, done))
        # The frame before the first is wanted for its motion, and to see that the style still paints as it did.
        frames = self.given.frames(skip=max(0, done - 1), seconds=self.seconds)
        first: Frame | None = None
        if done:
            first = await asyncio.to_thread(next, frames, None)
            if first is None:
                raise InputError(f"{self.given.path} has fewer frames than are painted: give --restart to begin again")
            again, _ = await painter.paint(first, None, self._seconds_of(first))
            parts.compare(again)
        pairs = pairwise(chain((first,), frames))

        async def work(pair: tuple[Frame | None, Frame | None]) -> tuple[Frame, Motion | None]:
            before, frame = pair
            assert frame is not None
            return await painter.paint(frame, before, self._seconds_of(frame))

        async with aclosing(overlapped(pairs, work, self.at_once)) as results:
            async for frame, moved in results:
                await asyncio.to_thread(parts.add, frame, moved)
                done += 1
                self.on_frame(done, max(self.total, done))
        await asyncio.to_thread(parts.finish)

    def _seconds_of(self, frame: Frame) -> float:
        return float((frame.pts - self.given.start) * self.given.format.time_base)


class FrameStylizer:
    """Paints frames by a client, as a settings says."""

    def __init__(self, client: AsyncStyleClient, settings: VideoSettings, models: Mapping[str, str]) -> None:
        self.client, self.settings, self._models = client, settings, models

    @classmethod
    async def of(cls, client: AsyncStyleClient, settings: VideoSettings) -> Self:
        """Raises `UnknownStyle` for a style that the server lacks, `InputError` for a mix that cannot be."""
        offered = {style.name: style for style in await client.styles()}
        for mix in settings.schedule.mixes:
            if missing := [name for name in mix if name not in offered]:
                raise UnknownStyle(f"{client.url} has no style {missing[0]!r}; it has: {', '.join(offered) or 'none'}")
            resolve_style_weights([offered[name] for name in mix], list(mix.values()))
        return cls(client, settings, {name: style.model for name, style in offered.items()})

    async def paint(self, frame: Frame, before: Frame | None, seconds: float) -> tuple[Frame, Motion | None]:
        """The frame painted, and its motion since the one before if that is wanted and there is one."""
        settings, moving = self.settings, None
        if settings.smooth and before is not None:
            moving = asyncio.create_task(asyncio.to_thread(motion, before.pixels, frame.pixels))
        try:
            pixels = await self._mixed(frame.pixels, settings.schedule.at(seconds))
            if settings.preserve_color or settings.strength < 1:
                pixels = await asyncio.to_thread(
                    postprocess, frame.pixels, pixels, settings.strength, settings.preserve_color
                )
            return replace(frame, pixels=pixels), await moving if moving else None
        finally:
            if moving:
                moving.cancel()  # no more than done where all went well

    async def _mixed(self, pixels: Pixels, moment: Moment) -> Pixels:
        """By the weights of one model, or as a blend of the pictures of two."""
        mix = moment.together
        if moment.share in (0.0, 1.0) or len({self._models[name] for name in mix}) == 1:
            return await self.client.stylize(pixels, {name: weight for name, weight in mix.items() if weight})
        first, second = await asyncio.gather(
            *(self.client.stylize(pixels, one) for one in (moment.before, moment.after))
        )
        return await asyncio.to_thread(blend, first, second, moment.share)


async def overlapped(items: Iterable[T], work: Callable[[T], Awaitable[R]], at_once: int) -> AsyncGenerator[R, None]:
    """The results of `work` in the order of the items, `at_once` of them at work while the caller uses one.

    Items are fetched ahead in a thread, since that may take its time too.
    """
    iterator = iter(items)
    room = asyncio.Semaphore(at_once)
    queue: asyncio.Queue[asyncio.Task[R] | None] = asyncio.Queue(at_once)
    tasks: set[asyncio.Task[R]] = set()

    async def one(item: T) -> R:
        try:
            return await work(item)
        finally:
            room.release()

    async def fetch() -> None:
        error: Exception | None = None
        try:
            while (item := await asyncio.to_thread(_next, iterator)) is not None:
                await room.acquire()
                task = asyncio.create_task(one(item[0]))
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
    """The next item in a box, None at the end: a coroutine cannot raise StopIteration."""
    for item in iterator:
        return (item,)
    return None
