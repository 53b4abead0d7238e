"""A video painted frame by frame: decoded ahead, several requests on their way, encoded in parts and joined.

The parts lie in a folder beside the result. Each holds `PART` frames and appears whole, so a run that was killed goes
on behind the last of them: no frame is lost, none comes twice.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import av
import numpy as np

from nst_client.client import AsyncStyleClient
from nst_client.errors import UnknownStyle
from nst_client.styles import resolve_style_weights
from nst_client.stylize.processing import postprocess
from nst_client.video import footage
from nst_client.video.flow import Motion, Smoother, motion
from nst_client.video.footage import Encoder, Footage, Frame
from nst_client.video.schedule import Moment, Schedule
from nst_core.errors import InputError, WriteError
from nst_core.files import atomic_write
from nst_core.images import Pixels, blend

PART = 48
"""Frames of a part: what a crash costs at most, and the distance of the frames to which a player can jump."""

PREVIEW = 5.0
"""Seconds of a preview."""

FINGERPRINT = 2**20
"""Bytes at a video's beginning, and at its end, by which it is known again."""

SAME_STYLE = 1.0
"""Mean levels of 255 by which a frame may differ that the same style paints again, on other hardware for instance."""

PARTS, ABOUT, LOCK = "[0-9]*-*.nut", "about.json", "lock"
"""The finished parts in their folder, what they have in common, and whose they are now."""

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

    @property
    def options(self) -> dict[str, object]:
        """What finished parts must have in common with those to come, by the names of the command's options."""
        return {
            "--style": str(self.schedule),
            "--strength": self.strength,
            "--preserve-color": self.preserve_color,
            "--max-side": self.max_side,
            "--smooth": self.smooth,
            "--preview": self.preview,
            "--codec": self.codec,
            "--crf": footage.CODECS[self.codec].crf if self.crf is None else self.crf,
        }


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
    restart: bool = False,
    on_frame: OnFrame = lambda done, total: None,
) -> Result:
    """Paint the video `source` into the file `target`, going on where a run before was stopped.

    `at_once` requests are on their way together. `restart` removes the parts that a run before has finished.
    `on_frame` is called with the number of frames that are painted and of all, the first time before any. Frame rate,
    time stamps, sound and the side that is up are kept. Where a loop of asyncio runs already, as in a notebook, the
    work is done in a thread of its own, which calls `connect` and `on_frame` as well.

    Raises `ImageError` if `source` is no video, `InputError` for what cannot be and for finished parts of another
    plan, video or style, `WriteError`, and what `StyleClient.stylize` raises; all leave the parts that are finished.
    """
    if source.resolve() == target.resolve() or (target.exists() and source.exists() and target.samefile(source)):
        raise InputError(f"{source} would be overwritten: choose another file than its own")
    given = Footage(source, max_side=plan.max_side)
    footage.check(target, plan.codec, plan.crf, given)
    return completed(_Run(given, target, plan, at_once, on_frame).paint(connect, restart))


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
    def __init__(self, given: Footage, target: Path, plan: Plan, at_once: int, on_frame: OnFrame) -> None:
        self.given, self.target, self.plan, self.at_once, self.on_frame = given, target, plan, at_once, on_frame
        self.seconds = PREVIEW if plan.preview else None
        self.total = given.total
        if self.seconds is not None:
            self.total = min(self.total, round(self.seconds * given.format.rate))

    async def paint(self, connect: Callable[[], AsyncStyleClient], restart: bool) -> Result:
        async with connect() as client:
            painter = await Painter.of(client, self.plan)
            with Parts.of(self.given, self.target, self.plan, restart) as parts:
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
            resolve_style_weights([offered[name] for name in mix], list(mix.values()))
        return cls(client, plan, {name: style.model for name, style in offered.items()})

    async def paint(self, frame: Frame, before: Frame | None, seconds: float) -> tuple[Frame, Motion | None]:
        """The frame painted, and its motion since the one before if that is wanted and there is one."""
        plan, moving = self.plan, None
        if plan.smooth and before is not None:
            moving = asyncio.create_task(asyncio.to_thread(motion, before.pixels, frame.pixels))
        try:
            pixels = await self._mixed(frame.pixels, plan.schedule.at(seconds))
            if plan.preserve_color or plan.strength < 1:
                pixels = await asyncio.to_thread(postprocess, frame.pixels, pixels, plan.strength, plan.preserve_color)
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


class Parts:
    """What is painted of a video, in a folder beside the target: parts, and with the last what the next goes on from.

    That is its last frame as the style painted it, and what smoothing keeps.
    """

    def __init__(self, folder: Path, given: Footage, plan: Plan, lock: ExitStack) -> None:
        self.folder, self._given, self._plan, self._lock = folder, given, plan, lock
        self.files = self._whole()
        self.frames = sum(_count(file) for file in self.files)
        self._painted: Pixels | None = None
        self.smoother = Smoother()
        if self.files:
            if not self._state.is_file():
                raise InputError(f"{folder} has lost {self._state.name}: give --restart to begin again")
            self._painted, self.smoother = _restored(self._state)
        self._encoding = ExitStack()
        self._encoder: Encoder | None = None
        self._held = 0

    @classmethod
    def of(cls, given: Footage, target: Path, plan: Plan, restart: bool = False) -> Self:
        """Those that a run before left; none if there are none, or with `restart`.

        Raises `InputError` if finished parts are of another video, plan or encoder, if another run is painting them,
        or if the folder is there and not ours; `WriteError` if it cannot be made.
        """
        folder = target.with_name(f"{target.name}.parts")
        about = folder / ABOUT
        wanted: dict[str, object] = {"format": "nst-video-parts/2", "the video": _fingerprint(given.path)}
        wanted |= {"PyAV": av.__version__, "frames of a part": PART} | plan.options
        try:
            if folder.exists() and not about.is_file() and {file.name for file in folder.iterdir()} - {LOCK}:
                raise InputError(f"{folder} is there already, and not of a painted video: move it away")
            folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                _lock(stack, folder)
                finished_frames = sum(_count(file) for file in folder.glob(PARTS))
                if about.is_file() and finished_frames and not restart:
                    _compare(_read(about), wanted, f"{folder} has {finished_frames} frames")
                else:
                    for file in folder.iterdir():
                        if file.name != LOCK:
                            file.unlink()
                    with atomic_write(about) as beside:
                        beside.write_text(json.dumps(wanted))
                return cls(folder, given, plan, stack.pop_all())
        except OSError as error:
            raise WriteError(f"cannot write {folder}: {error.strerror or error}") from error

    def compare(self, again: Frame) -> None:
        """Raise `InputError` if the style paints the last finished frame otherwise than it did."""
        known = self._painted
        if known is None:
            return
        if known.shape == again.pixels.shape:
            apart = float(np.abs(known.astype(np.int16) - again.pixels).mean())
            if apart <= SAME_STYLE:
                return
        raise InputError(
            f"{self.folder} has {self.frames} frames by another model: the style paints differently now, after an "
            "export for instance; serve the model of before, or give --restart to begin again"
        )

    def add(self, frame: Frame, moved: Motion | None) -> None:
        """The next frame."""
        if self._encoder is None:
            self._encoder = Encoder(self._begun, self._given.format, self._plan.codec, self._plan.crf)
            self._encoding.push(self._encoder)
        self._painted = frame.pixels
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
        self._save(whole)
        with atomic_write(whole) as beside:
            self._begun.replace(beside)
        self.files.append(whole)
        self.frames += self._held
        self._encoder, self._held = None, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is begun and not finished goes; so does the folder if no part is finished."""
        with self._lock:
            if self._encoder is not None:
                with suppress(WriteError):  # of a full disk for instance, which is what ends the block
                    self._encoding.close()
                self._begun.unlink(missing_ok=True)
            if not self.files:
                self.remove()

    def remove(self) -> None:
        """All of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _whole(self) -> list[Path]:
        """The parts without a gap from the first frame on; what follows a gap, and what was not finished, goes."""
        files: list[Path] = []
        frames = 0
        for file in sorted(self.folder.glob(PARTS)):
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
        """What the next part goes on from; that of the part before last is of no use any more."""
        state = {name: value for name, value in vars(self.smoother).items() if value is not None}
        with atomic_write(part.with_suffix(".npz")) as beside, beside.open("wb") as file:
            np.savez(file, last=self._painted, **state)  # type: ignore[arg-type]
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


def _restored(state: Path) -> tuple[Pixels, Smoother]:
    """The last frame as the style painted it, and what smoothing keeps."""
    with np.load(state) as saved:
        values: dict[str, Any] = {name: saved[name] if saved[name].ndim else float(saved[name]) for name in saved.files}
    return values.pop("last"), Smoother(**values)


def _fingerprint(path: Path) -> str:
    """By a file's size, beginning and end, so that it may be moved and copied."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        for start in (0, max(0, size - FINGERPRINT)):
            file.seek(start)
            digest.update(file.read(FINGERPRINT))
    return f"{size} bytes, {digest.hexdigest()[:12]}"


def _lock(stack: ExitStack, folder: Path) -> None:
    """Keep other runs out of a folder until `stack` is closed. Raises `InputError` if there is one."""
    lock = stack.enter_context((folder / LOCK).open("wb"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another nst video is painting into {folder}: wait for it, or choose another -o") from None
    except OSError:
        pass  # a file system without locks


def _read(about: Path) -> dict[str, Any]:
    try:
        document = json.loads(about.read_text())
    except ValueError:
        document = None
    return document if isinstance(document, dict) else {}


def _compare(known: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """Raise `InputError` for parts of another run, which names what differs first, and how."""
    advice = "give --restart to begin again, or another -o"
    if known.get("format") != wanted["format"]:
        raise InputError(f"{what} of another version of nst video: {advice}")
    for name, value in wanted.items():
        if name not in known or known[name] != value:
            raise InputError(f"{what} with {name} {_shown(known.get(name))}, not {_shown(value)}: {advice}")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)
