"""A video painted frame by frame: decoded ahead, several requests on their way, encoded in parts and joined.

The parts lie in a folder beside the result. Each holds `PART` frames and appears whole, so a run that was killed goes
on behind the last of them: no frame is lost, none comes twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, aclosing
from dataclasses import asdict, dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import av
import numpy as np

from nst_client import footage
from nst_client.client import AsyncStyleClient
from nst_client.errors import UnknownStyle
from nst_client.flow import Motion, Smoother, motion
from nst_client.footage import Encoder, Footage, Frame
from nst_client.jobs import finished
from nst_client.schedule import Moment, Schedule
from nst_client.styles import mixed
from nst_core.errors import InputError, WriteError
from nst_core.files import written_whole
from nst_core.images import Pixels, blended

PART = 48
"""Frames of a part: what a crash costs at most, and the distance of the frames to which a player can jump."""

PREVIEW = 5.0
"""Seconds of a preview."""

T = TypeVar("T")
R = TypeVar("R")
OnFrame = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """How a video is painted and stored: what `nst video` says of each option."""

    schedule: Schedule
    strength: float = 1.0
    preserve_color: bool = False
    max_side: int | None = None
    smooth: bool = False
    preview: bool = False
    codec: str = "h264"
    crf: int | None = None


@dataclass(frozen=True)
class Result:
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


def paint_video(
    source: Path,
    target: Path,
    plan: Plan,
    connect: Callable[[], AsyncStyleClient],
    *,
    at_once: int = 3,
    on_frame: OnFrame = lambda done, total: None,
) -> Result:
    """Paint the video `source` into the file `target`, going on where a run before was stopped.

    `at_once` requests are on their way together. `on_frame` is called with the number of frames that are painted and
    of all, the first time before any. Frame rate, time stamps, sound and the side that is up are kept.

    Raises `PictureError` if `source` is no video, `InputError` for what cannot be, `WriteError`, and what
    `StyleClient.stylize` raises; all but the first two leave the parts that are finished.
    """
    if source.resolve() == target.resolve():
        raise InputError(f"{source} would be overwritten: choose another file than its own")
    given = Footage(source, max_side=plan.max_side)
    footage.check(target, plan.codec, plan.crf, given.sound)
    return asyncio.run(_Run(given, target, plan, at_once, on_frame).paint(connect))


class _Run:
    def __init__(self, given: Footage, target: Path, plan: Plan, at_once: int, on_frame: OnFrame) -> None:
        self.given, self.target, self.plan, self.at_once, self.on_frame = given, target, plan, at_once, on_frame
        self.seconds = PREVIEW if plan.preview else None
        self.total = given.total
        if self.seconds is not None:
            self.total = min(self.total, round(self.seconds * given.format.rate))

    async def paint(self, connect: Callable[[], AsyncStyleClient]) -> Result:
        async with connect() as client:
            painter = await Painter.of(client, self.plan)
            with Parts.of(self.given, self.target, self.plan) as parts:
                done, started = parts.frames, time.perf_counter()
                await self._paint_parts(painter, parts)
        seconds = time.perf_counter() - started
        await asyncio.to_thread(footage.join, parts.files, self.given, self.target, cut=self.plan.preview)
        parts.remove()
        error = parts.smoother.warping_error if self.plan.smooth else None
        form = self.given.format
        sides = footage.sides(form, self.plan.codec)
        padded = sides != (form.width, form.height)
        return Result(sides, padded, parts.frames, self.given.repeated, parts.frames - done, seconds, error)

    async def _paint_parts(self, painter: Painter, parts: Parts) -> None:
        done = parts.frames
        self.on_frame(done, max(self.total, done))
        # The frame before the first is wanted for its motion.
        frames = self.given.frames(skip=max(0, done - 1), seconds=self.seconds)
        pairs = pairwise(chain(() if done else (None,), frames))

        async def work(pair: tuple[Frame | None, Frame | None]) -> tuple[Frame, Motion | None]:
            before, frame = pair
            assert frame is not None
            seconds = float((frame.pts - self.given.start) * self.given.format.time_base)
            return await painter.paint(frame, before, seconds)

        async with aclosing(overlapped(pairs, work, self.at_once)) as results:
            async for frame, moved in results:
                await asyncio.to_thread(parts.add, frame, moved)
                done += 1
                self.on_frame(done, max(self.total, done))
        await asyncio.to_thread(parts.finish)


class Painter:
    """Paints frames by a client, as a plan says."""

    def __init__(self, client: AsyncStyleClient, plan: Plan, models: Mapping[str, str]) -> None:
        self.client, self.plan, self._models = client, plan, models

    @classmethod
    async def of(cls, client: AsyncStyleClient, plan: Plan) -> Self:
        """Raises `UnknownStyle` for a style that the server lacks, `InputError` for a mix that cannot be."""
        offered = {style.name: style for style in await client.styles()}
        for mix in plan.schedule.mixes:
            if missing := [name for name in mix if name not in offered]:
                raise UnknownStyle(f"{client.url} has no style {missing[0]!r}; it has: {', '.join(offered) or 'none'}")
            mixed([offered[name] for name in mix], list(mix.values()))
        return cls(client, plan, {name: style.model for name, style in offered.items()})

    async def paint(self, frame: Frame, before: Frame | None, seconds: float) -> tuple[Frame, Motion | None]:
        """The frame painted, and its motion since the one before if that is wanted and there is one."""
        plan, moving = self.plan, None
        if plan.smooth and before is not None:
            moving = asyncio.create_task(asyncio.to_thread(motion, before.pixels, frame.pixels))
        pixels = await self._mixed(frame.pixels, plan.schedule.at(seconds))
        if plan.preserve_color or plan.strength < 1:
            pixels = await asyncio.to_thread(finished, frame.pixels, pixels, plan.strength, plan.preserve_color)
        return replace(frame, pixels=pixels), await moving if moving else None

    async def _mixed(self, pixels: Pixels, moment: Moment) -> Pixels:
        """By the weights of one model, or as a blend of the pictures of two."""
        mix = moment.together
        if moment.share in (0.0, 1.0) or len({self._models[name] for name in mix}) == 1:
            return await self.client.stylize(pixels, {name: weight for name, weight in mix.items() if weight})
        first, second = await asyncio.gather(
            *(self.client.stylize(pixels, one) for one in (moment.before, moment.after))
        )
        return await asyncio.to_thread(blended, first, second, moment.share)


class Parts:
    """What is painted of a video, in a folder beside the target: parts, and with each what smoothing goes on from."""

    def __init__(self, folder: Path, given: Footage, plan: Plan) -> None:
        self.folder, self._given, self._plan = folder, given, plan
        self.files = self._whole()
        self.frames = sum(_count(file) for file in self.files)
        self.smoother = _restored(self._state) if plan.smooth and self.files else Smoother()
        self._encoding = ExitStack()
        self._encoder: Encoder | None = None
        self._held = 0

    @classmethod
    def of(cls, given: Footage, target: Path, plan: Plan) -> Self:
        """Those that a run before left, if they are of the same video, plan and encoder; else none.

        Raises `InputError` if the folder is there and not ours, `WriteError` if it cannot be made.
        """
        folder = target.with_name(f"{target.name}.parts")
        about = folder / "about.json"
        found = given.path.stat()
        versions = {"av": av.__version__, "part": PART}
        text = json.dumps(
            {"source": [str(given.path.resolve()), found.st_size, found.st_mtime_ns], **versions, "plan": asdict(plan)}
        )
        try:
            known = about.read_text() if about.is_file() else None
            if known != text:
                if folder.exists() and known is None and any(folder.iterdir()):
                    raise InputError(f"{folder} is there already, and not of a painted video: move it away")
                shutil.rmtree(folder, ignore_errors=True)
                with written_whole(about) as beside:
                    beside.write_text(text)
        except OSError as error:
            raise WriteError(f"cannot write {folder}: {error.strerror or error}") from error
        return cls(folder, given, plan)

    def add(self, frame: Frame, moved: Motion | None) -> None:
        """The next frame."""
        if self._encoder is None:
            self._encoder = Encoder(self._begun, self._given.format, self._plan.codec, self._plan.crf)
            self._encoding.push(self._encoder)
        if self._plan.smooth:
            frame = replace(frame, pixels=self.smoother.smooth(frame.pixels, moved))
        self._encoder.add(frame)
        self._held += 1
        if self._held == PART:
            self.finish()

    def finish(self) -> None:
        """End the part that is begun: from now on it is there after a crash."""
        if self._encoder is None:
            return
        self._encoding.close()
        whole = self.folder / f"{self.frames:09}-{self._held}.nut"
        try:
            with self._begun.open("rb+") as written:
                os.fsync(written.fileno())
            if self._plan.smooth:
                self._save(whole)
            self._begun.replace(whole)
        except OSError as error:
            raise WriteError(f"cannot write {whole}: {error.strerror or error}") from error
        self.files.append(whole)
        self.frames += self._held
        self._encoder, self._held = None, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is begun and not finished goes."""
        self._encoding.close()
        if self._encoder is not None:
            self._begun.unlink(missing_ok=True)

    def remove(self) -> None:
        """All of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _whole(self) -> list[Path]:
        """The parts without a gap from the first frame on; what follows a gap, and what was not finished, goes."""
        files: list[Path] = []
        frames = 0
        for file in sorted(self.folder.glob("[0-9]*-*.nut")):
            if int(file.stem.partition("-")[0]) == frames:
                files.append(file)
                frames += _count(file)
        for file in self.folder.glob("*.nut"):
            if file not in files:
                file.unlink()
        return files

    @property
    def _begun(self) -> Path:
        return self.folder / f"begun-{self.frames:09}.nut"

    @property
    def _state(self) -> Path:
        return self.files[-1].with_suffix(".npz")

    def _save(self, part: Path) -> None:
        """What smoothing goes on from after this part; that of the part before last is of no use any more."""
        with written_whole(part.with_suffix(".npz")) as beside, beside.open("wb") as file:
            np.savez(file, **{name: value for name, value in vars(self.smoother).items() if value is not None})
        for old in self.files[:-1]:
            old.with_suffix(".npz").unlink(missing_ok=True)


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


def _count(part: Path) -> int:
    return int(part.stem.partition("-")[2])


def _restored(state: Path) -> Smoother:
    with np.load(state) as saved:
        values: dict[str, Any] = {name: saved[name] if saved[name].ndim else float(saved[name]) for name in saved.files}
    return Smoother(**values)
