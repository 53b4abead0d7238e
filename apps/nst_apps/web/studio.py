"""Visitors, their content images and their jobs; visitors see only their own.

A cookie's secret identifies a visitor. Its hash names a folder inside a temporary one, which is removed when the
program ends. Images are looked up only in the visitor's own tables, so another visitor's names lead nowhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from shutil import disk_usage
from typing import Any, TypeVar

import numpy as np

from nst_apps.web.server import Server
from nst_client.errors import Unavailable, Unreachable
from nst_client.styles import resolve_style_weights, unknown_style
from nst_client.stylize.processing import StylizeOptions, postprocess
from nst_core.errors import InputError, NstError
from nst_core.images import WRITABLE_FORMATS, ImageData, encode_image, open_image, resize

SHOWN_SIDE_PIXELS = 1600
"""Longer side of images on the page, in pixels; a download has the content image's size."""

CONCURRENCY = 2
"""Images in parallel: while one waits for the server, another is read or written."""

FORGET_AFTER_SECONDS = 3600.0
"""Time after which an absent visitor and all files are removed."""

MAX_VISITORS, MAX_CONTENTS, MAX_JOBS = 200, 8, 24
"""Maximum visitors, and maximum content images and jobs per visitor; the oldest are removed first."""

MAX_DISK_BYTES, MIN_FREE_BYTES = 8_000_000_000, 500_000_000
"""Maximum bytes of all visitors' files, and bytes that stay free on the disk."""

AWAY_SECONDS = 300.0
"""Time after which an absent visitor may be removed to make room; an open page asks far more often."""

UNAVAILABLE_TIMEOUT_SECONDS, RETRY_PAUSE_SECONDS, MAX_DISCONNECTS = 120.0, 2.0, 5
"""A job fails when its model has been unavailable for this long, with a pause between tries, or when the server has
disconnected this often, since the image may be the cause."""

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """A visitor's limits: bytes of a file, pixels of an image, and unfinished jobs.

    `disk` and `free` are bytes, see `MAX_DISK_BYTES`.
    """

    upload: int
    pixels: int
    jobs: int
    disk: int = MAX_DISK_BYTES
    free: int = MIN_FREE_BYTES


@dataclass(frozen=True)
class ContentImage:
    """A visitor's content image: the file as uploaded, its name, and its upright size in pixels."""

    name: str
    file: Path
    width: int
    height: int


@dataclass
class StylizeJob:
    """An image to stylize and its status; `tiles` are the finished tiles and all tiles."""

    name: str
    content: ContentImage
    style: Mapping[str, float]
    max_side: int | None
    file: Path
    number: int
    status: str = "waiting"
    tiles: tuple[int, int] = (0, 0)
    error: str = ""
    """Why the job failed, or why it still waits."""
    task: asyncio.Task[None] | None = None

    @property
    def pending(self) -> bool:
        """Whether the job is unfinished."""
        return self.status in ("waiting", "stylizing")


@dataclass
class Visitor:
    """A visitor: `key` is the hash of the secret, `kept` the bytes of each content and stylized image."""

    key: str
    folder: Path
    contents: dict[str, ContentImage] = field(default_factory=dict)
    jobs: dict[str, StylizeJob] = field(default_factory=dict)
    seen: float = field(default_factory=time.monotonic)
    live: bool = False
    kept: dict[str, int] = field(default_factory=dict)

    @property
    def idle(self) -> float:
        """Seconds since the visitor's last request; 0 while the camera is live."""
        return 0.0 if self.live else time.monotonic() - self.seen


class Studio:
    """All visitors, and the queue of their jobs."""

    def __init__(self, server: Server, folder: Path, limits: Limits) -> None:
        self.server, self.folder, self.limits = server, folder, limits
        self.visitors: dict[str, Visitor] = {}
        self._numbers = count()
        self._turns = asyncio.Semaphore(CONCURRENCY)
        self._hands = asyncio.Semaphore(CONCURRENCY)

    def visitor(self, secret: str) -> Visitor:
        """Return the visitor with this secret, new or known. Raises `InputError` if too many cameras are live."""
        key = hashlib.sha256(secret.encode()).hexdigest()
        if key not in self.visitors:
            self._make_room()
            visitor = Visitor(key, self.folder / key)
            with _kept_on_disk():
                self.folder.mkdir(mode=0o700, exist_ok=True)  # it may have been cleaned up from /tmp
                visitor.folder.mkdir(mode=0o700)
            self.visitors[key] = visitor
        visitor = self.visitors[key]
        visitor.seen = time.monotonic()
        return visitor

    async def add_content(self, visitor: Visitor, data: bytes) -> ContentImage:
        """Add a content image from its file's bytes. Raises `ImageError`, and `InputError` for a full disk."""
        image = await self.worked(open_image, io.BytesIO(data), max_pixels=self.limits.pixels)
        name = secrets.token_hex(8)
        content = ContentImage(name, visitor.folder / name, image.width, image.height)
        with self._room(visitor, content.file, len(data) + _shown_bytes(image.width, image.height)):
            await self.worked(_keep_content, content, image, data)
        visitor.contents[name] = content
        for old in list(visitor.contents)[:-MAX_CONTENTS]:
            if not any(job.content.name == old for job in visitor.jobs.values()):
                self._remove(visitor, visitor.contents.pop(old).file)
        return content

    def submit(
        self, visitor: Visitor, content: ContentImage, style: Mapping[str, float], max_side: int | None
    ) -> StylizeJob:
        """Queue a job. Raises `UnknownStyle`, or `InputError` for invalid style weights or too many jobs."""
        if sum(job.pending for job in visitor.jobs.values()) >= self.limits.jobs:
            raise InputError(
                f"{self.limits.jobs} of your images are waiting, which is the maximum; wait for one, or remove one"
            )
        self.check(style, content, max_side)
        name = secrets.token_hex(8)
        job = StylizeJob(name, content, style, max_side, visitor.folder / name, next(self._numbers))
        visitor.jobs[name] = job
        job.task = asyncio.create_task(self._work_on(visitor, job))
        settled = [old for old in visitor.jobs.values() if not old.pending]
        for old in settled[: max(0, len(visitor.jobs) - MAX_JOBS)]:
            self.remove(visitor, old)
        return job

    def check(
        self, style: Mapping[str, float], content: ContentImage | None = None, max_side: int | None = None
    ) -> None:
        """Raise `UnknownStyle` or `InputError` for what the server could not stylize at the last check."""
        offered = {known.name: known for known in self.server.styles}
        if missing := [name for name in style if name not in offered]:
            raise unknown_style("the server", missing[0], offered)
        first, _ = resolve_style_weights([offered[name] for name in style], list(style.values()))
        if content and first.tiles is None:
            longer = max(content.width, content.height)
            scale = min(1.0, (max_side or longer) / longer)
            height, width = round(content.height * scale), round(content.width * scale)
            if not first.takes(height, width):
                fitting = first.fitting_side(height, width)
                raise InputError(
                    f"{first.name} accepts this image up to {fitting} pixels a side; choose a smaller size"
                )

    def remove(self, visitor: Visitor, job: StylizeJob) -> None:
        """Remove a job, even while it waits or runs."""
        if job.task:
            job.task.cancel()
        visitor.jobs.pop(job.name, None)
        self._remove(visitor, job.file)

    def before(self, job: StylizeJob) -> int:
        """Return how many jobs of all visitors come before this one."""
        everybody = (known for visitor in self.visitors.values() for known in visitor.jobs.values())
        return sum(known.pending and known.number < job.number for known in everybody)

    async def shown_before(self, content: ContentImage) -> bytes:
        """Return a content image as JPEG, at most `SHOWN_SIDE_PIXELS` pixels a side."""
        return await self.worked(lambda: encode_image(ImageData(np.load(_small(content.file))), "JPEG", quality=88))

    async def shown(self, job: StylizeJob, recipe: StylizeOptions) -> bytes:
        """Return a finished job as JPEG, at most `SHOWN_SIDE_PIXELS` pixels a side, according to the recipe."""
        return await self.worked(_shown, job, recipe)

    async def whole(self, job: StylizeJob, recipe: StylizeOptions) -> tuple[bytes, str]:
        """Return a finished job's file at full size, and Pillow's name of its format, the content image's."""
        return await self.worked(_whole, job, recipe, self.limits.pixels)

    async def worked(self, work: Callable[..., T], *arguments: Any, **more: Any) -> T:
        """Run `work` in a thread and return its result; few run in parallel, since images take memory."""
        async with self._hands:
            return await asyncio.to_thread(work, *arguments, **more)

    async def sweep(self) -> None:
        """Remove absent visitors, forever."""
        while True:
            await asyncio.sleep(60)
            for visitor in list(self.visitors.values()):
                if visitor.idle > FORGET_AFTER_SECONDS:
                    self._forget(visitor)

    async def close(self) -> None:
        """Cancel all jobs."""
        tasks = [job.task for visitor in self.visitors.values() for job in visitor.jobs.values() if job.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _make_room(self) -> None:
        while len(self.visitors) >= MAX_VISITORS:
            leaving = [visitor for visitor in self.visitors.values() if not visitor.live]
            if not leaving:
                raise InputError(
                    f"{MAX_VISITORS} visitors are using their cameras, which is the maximum; try again later"
                )
            self._forget(max(leaving, key=lambda visitor: visitor.idle))

    @contextmanager
    def _room(self, visitor: Visitor, file: Path, size: int) -> Iterator[None]:
        """Make room for a visitor's file that is written in the block, and remove it after an error.

        Absent visitors are removed, the longest absent first. Raises `InputError` if that is not enough.
        """

        def lacks() -> bool:
            taken = sum(sum(known.kept.values()) for known in self.visitors.values())
            return taken + size > self.limits.disk or disk_usage(self.folder).free < size + self.limits.free

        with _kept_on_disk():
            while lacks():
                leaving = [
                    known for known in self.visitors.values() if known is not visitor and known.idle > AWAY_SECONDS
                ]
                if not leaving:
                    raise InputError("the page has no room for this image; remove some of yours, or try again later")
                self._forget(max(leaving, key=lambda known: known.idle))
        visitor.kept[file.name] = size
        try:
            with _kept_on_disk():
                yield
        except BaseException:
            self._remove(visitor, file)
            raise

    def _remove(self, visitor: Visitor, file: Path) -> None:
        visitor.kept.pop(file.name, None)
        file.unlink(missing_ok=True)
        _small(file).unlink(missing_ok=True)

    def _forget(self, visitor: Visitor) -> None:
        for job in list(visitor.jobs.values()):
            self.remove(visitor, job)
        del self.visitors[visitor.key]
        shutil.rmtree(visitor.folder, ignore_errors=True)

    async def _work_on(self, visitor: Visitor, job: StylizeJob) -> None:
        try:
            await self._tried(visitor, job)
            job.status, job.error = "done", ""
        except NstError as error:
            job.status, job.error = "failed", str(error)
        except Exception as error:  # nobody awaits this task, so an error that is not reported here is lost
            log.exception("a job in the style %s failed", ", ".join(job.style))
            job.status = "failed"
            job.error = f"nst web has a defect ({type(error).__name__}); see its terminal"

    async def _tried(self, visitor: Visitor, job: StylizeJob) -> None:
        """Stylize when the server answers, so that a restart of the server costs time and no job.

        A job that waits for the server or a model gives up its turn. Raises `Unavailable` or `Unreachable` after
        the maximum wait.
        """
        waited, cuts = 0.0, 0
        while True:
            await self.server.up.wait()
            try:
                async with self._turns:
                    await self._stylize(visitor, job)
                return
            except Unreachable as error:
                self.server.lost(error)
                cuts += 1
                if cuts == MAX_DISCONNECTS:
                    raise Unreachable(
                        f"the server disconnected {MAX_DISCONNECTS} times during this image: {error}"
                    ) from error
            except Unavailable as error:
                if waited >= UNAVAILABLE_TIMEOUT_SECONDS:
                    raise Unavailable(f"the server cannot run this style now; try again later ({error})") from error
                job.error = "the server cannot run this style right now; trying again"
                waited += RETRY_PAUSE_SECONDS
                await asyncio.sleep(RETRY_PAUSE_SECONDS)

    async def _stylize(self, visitor: Visitor, job: StylizeJob) -> None:
        """Read, stylize and store the image, while the job has a turn."""

        def on_tile(done: int, total: int) -> None:
            job.tiles = done, total

        job.status = "stylizing"
        try:
            image = await self.worked(
                open_image, job.content.file, max_pixels=self.limits.pixels, max_side=job.max_side
            )
            pixels = await self.server.client.stylize(image.pixels, job.style, on_tile=on_tile)
            size = pixels.nbytes + _shown_bytes(image.width, image.height)
            with self._room(visitor, job.file, size):
                await self.worked(_keep_stylized, job, pixels)
        finally:
            job.status, job.tiles = "waiting", (0, 0)


def _keep_content(content: ContentImage, image: ImageData, data: bytes) -> None:
    content.file.write_bytes(data)
    np.save(_small(content.file), _fit(image).pixels)


def _keep_stylized(job: StylizeJob, pixels: Any) -> None:
    """Store the pixels without compression: they are read for every download and removed with the visitor."""
    with job.file.open("wb") as file:
        np.save(file, pixels)
    np.save(_small(job.file), _fit(ImageData(pixels)).pixels)


def _shown(job: StylizeJob, recipe: StylizeOptions) -> bytes:
    stylized = np.load(_small(job.file))
    content = resize(ImageData(np.load(_small(job.content.file))), stylized.shape[1], stylized.shape[0]).pixels
    result = postprocess(content, stylized, recipe.strength, recipe.preserve_color)
    return encode_image(ImageData(result), "JPEG", quality=88)


def _whole(job: StylizeJob, recipe: StylizeOptions, max_pixels: int) -> tuple[bytes, str]:
    image = open_image(job.content.file, max_pixels=max_pixels, max_side=job.max_side)
    pixels = postprocess(image.pixels, np.load(job.file), recipe.strength, recipe.preserve_color)
    kind = image.metadata.kind if image.metadata.kind in WRITABLE_FORMATS.values() else "PNG"
    result = replace(image, pixels=pixels, metadata=replace(image.metadata, process=recipe.command))
    return encode_image(result, kind, quality=recipe.quality), kind


def _fit(image: ImageData) -> ImageData:
    scale = min(1.0, SHOWN_SIDE_PIXELS / max(image.width, image.height))
    return resize(image, max(1, round(image.width * scale)), max(1, round(image.height * scale)))


def _small(file: Path) -> Path:
    return file.with_suffix(".npy")


def _shown_bytes(width: int, height: int) -> int:
    """Estimate the bytes of an image's small copy."""
    scale = min(1.0, SHOWN_SIDE_PIXELS / max(width, height))
    return round(3 * width * scale * height * scale) + 1000


@contextmanager
def _kept_on_disk() -> Iterator[None]:
    """Turn a disk's errors into a line for the visitor."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError("the page has removed your images; add the image again") from error
    except OSError as error:
        raise InputError(f"the page cannot store your image ({error.strerror or error}); try again later") from error
