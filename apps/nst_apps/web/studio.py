"""The visitors, their content images and their jobs; each sees their own alone.

A visitor is whoever has the secret of a cookie. Its hash names a folder, in a temporary one that is gone when the
program ends, and nothing is found but in the visitor's own tables: another's name leads nowhere.
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
from nst_client.errors import Unavailable, UnknownStyle, Unreachable
from nst_client.styles import resolve_style_weights
from nst_client.stylize.processing import StylizeOptions, postprocess
from nst_core.errors import InputError, NstError
from nst_core.images import WRITABLE_FORMATS, ImageData, encode_image, open_image, resize

SHOWN_SIDE_PIXELS = 1600
"""Longer side of what the page shows, pixels; a download has the size of the content image."""

CONCURRENCY = 2
"""Images that are read, stylized and written at a time: while one waits for the server, another is read."""

FORGET_AFTER_SECONDS = 3600.0
"""Seconds after which a visitor who has not been seen is forgotten, with all files."""

MAX_VISITORS, MAX_CONTENTS, MAX_JOBS = 200, 8, 24
"""The most that is kept: of visitors, and of a visitor; the oldest go first."""

MAX_DISK_BYTES, MIN_FREE_BYTES = 8_000_000_000, 500_000_000
"""Bytes that all visitors' files take together at most, and those that are left free on the disk for others."""

AWAY_SECONDS = 300.0
"""Seconds after which a visitor who has not been seen makes room for others: an open page asks far more often."""

UNAVAILABLE_TIMEOUT_SECONDS, RETRY_PAUSE_SECONDS, MAX_DISCONNECTS = 120.0, 2.0, 5
"""A job is given up when its model has been unavailable for so many seconds, asked again after each pause, or when
the server went away so many times meanwhile: then the image may be what ends the server."""

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask for: the bytes of a file, the pixels of an image, and the jobs that wait.

    `disk` and `free` are bytes, see `MAX_DISK_BYTES`.
    """

    upload: int
    pixels: int
    jobs: int
    disk: int = MAX_DISK_BYTES
    free: int = MIN_FREE_BYTES


@dataclass(frozen=True)
class ContentImage:
    """An image that a visitor gave: the file as it came, its name and its size in pixels, upright."""

    name: str
    file: Path
    width: int
    height: int


@dataclass
class StylizeJob:
    """An image to stylize, and what has become of it so far; `tiles` are those done and all."""

    name: str
    content: ContentImage
    style: Mapping[str, float]
    max_side: int | None
    file: Path
    number: int
    status: str = "waiting"
    tiles: tuple[int, int] = (0, 0)
    error: str = ""
    """Why it failed, or why it still waits."""
    task: asyncio.Task[None] | None = None

    @property
    def pending(self) -> bool:
        """Whether it still has to be done."""
        return self.status in ("waiting", "stylizing")


@dataclass
class Visitor:
    """Whoever has the secret: `key` is its hash, `kept` are the bytes of the content and stylized images' files."""

    key: str
    folder: Path
    contents: dict[str, ContentImage] = field(default_factory=dict)
    jobs: dict[str, StylizeJob] = field(default_factory=dict)
    seen: float = field(default_factory=time.monotonic)
    live: bool = False
    kept: dict[str, int] = field(default_factory=dict)

    @property
    def idle(self) -> float:
        """Seconds for which the visitor has not been seen; 0 while the camera is live."""
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
        """Whose secret it is, from now on if not before. Raises `InputError` when too many cameras are live."""
        key = hashlib.sha256(secret.encode()).hexdigest()
        if key not in self.visitors:
            self._make_room()
            visitor = Visitor(key, self.folder / key)
            with _kept_on_disk():
                self.folder.mkdir(mode=0o700, exist_ok=True)  # whoever cleans up /tmp may have taken it
                visitor.folder.mkdir(mode=0o700)
            self.visitors[key] = visitor
        visitor = self.visitors[key]
        visitor.seen = time.monotonic()
        return visitor

    async def add_content(self, visitor: Visitor, data: bytes) -> ContentImage:
        """Return a content image from the bytes of its file. Raises `ImageError`, and `InputError` for a full disk."""
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
        """Put a job into the queue. Raises `InputError` for style weights that cannot be, or a job too many."""
        if sum(job.pending for job in visitor.jobs.values()) >= self.limits.jobs:
            raise InputError(
                f"{self.limits.jobs} of your images are waiting, the maximum: wait for the first, or remove it"
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
        """Raise `UnknownStyle` or `InputError` for what the server, when it was last looked at, cannot stylize."""
        offered = {known.name: known for known in self.server.styles}
        if missing := [name for name in style if name not in offered]:
            raise UnknownStyle(f"there is no style {missing[0]!r} here now")
        first, _ = resolve_style_weights([offered[name] for name in style], list(style.values()))
        if content and first.tiles is None:
            longer = max(content.width, content.height)
            scale = min(1.0, (max_side or longer) / longer)
            height, width = round(content.height * scale), round(content.width * scale)
            if not first.takes(height, width):
                fitting = first.fitting_side(height, width)
                raise InputError(f"{first.name} takes this image up to {fitting} pixels here: choose a smaller size")

    def remove(self, visitor: Visitor, job: StylizeJob) -> None:
        """Forget a job, also while it waits or runs."""
        if job.task:
            job.task.cancel()
        visitor.jobs.pop(job.name, None)
        self._remove(visitor, job.file)

    def before(self, job: StylizeJob) -> int:
        """Return how many jobs, whosever, come first."""
        everybody = (known for visitor in self.visitors.values() for known in visitor.jobs.values())
        return sum(known.pending and known.number < job.number for known in everybody)

    async def shown_before(self, content: ContentImage) -> bytes:
        """JPEG of a content image, at most `SHOWN_SIDE_PIXELS` pixels a side."""
        return await self.worked(lambda: encode_image(ImageData(np.load(_small(content.file))), "JPEG", quality=88))

    async def shown(self, job: StylizeJob, recipe: StylizeOptions) -> bytes:
        """JPEG of a finished job, at most `SHOWN_SIDE_PIXELS` pixels a side, with the recipe's strength and colours."""
        return await self.worked(_shown, job, recipe)

    async def whole(self, job: StylizeJob, recipe: StylizeOptions) -> tuple[bytes, str]:
        """Return the file of a finished job at its own size, and Pillow's name of its format: the content image's own."""
        return await self.worked(_whole, job, recipe, self.limits.pixels)

    async def worked(self, work: Callable[..., T], *arguments: Any, **more: Any) -> T:
        """Return what `work` returns, by a thread; few at a time, since an image takes memory."""
        async with self._hands:
            return await asyncio.to_thread(work, *arguments, **more)

    async def sweep(self) -> None:
        """Forget those who have gone, for ever and ever."""
        while True:
            await asyncio.sleep(60)
            for visitor in list(self.visitors.values()):
                if visitor.idle > FORGET_AFTER_SECONDS:
                    self._forget(visitor)

    async def close(self) -> None:
        """End all that is being stylized."""
        tasks = [job.task for visitor in self.visitors.values() for job in visitor.jobs.values() if job.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _make_room(self) -> None:
        while len(self.visitors) >= MAX_VISITORS:
            leaving = [visitor for visitor in self.visitors.values() if not visitor.live]
            if not leaving:
                raise InputError(f"{MAX_VISITORS} visitors have their cameras on, and no more fit: try again later")
            self._forget(max(leaving, key=lambda visitor: visitor.idle))

    @contextmanager
    def _room(self, visitor: Visitor, file: Path, size: int) -> Iterator[None]:
        """Make room for a file of a visitor's that is written in the block; an error leaves nothing of it.

        Those who have gone are forgotten first, who was seen last at last. Raises `InputError` if that is not enough.
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
                    raise InputError("the page has no room for it: remove images of yours, or try again later")
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
        except Exception as error:  # nobody awaits this task: what is not reported here is lost
            log.exception("a job in %s", ", ".join(job.style))
            job.status = "failed"
            job.error = f"a fault of nst web ({type(error).__name__}): its terminal says more"

    async def _tried(self, visitor: Visitor, job: StylizeJob) -> None:
        """By the server, when it is there: a server that goes away and comes back costs time and no job.

        Who waits for a server or a model has no turn meanwhile. Raises `Unavailable` and `Unreachable` when it was
        long enough.
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
                        f"the server went away {MAX_DISCONNECTS} times during this image: {error}"
                    ) from error
            except Unavailable as error:
                if waited >= UNAVAILABLE_TIMEOUT_SECONDS:
                    raise Unavailable(f"the server cannot run this style now, try again later: {error}") from error
                job.error = "the server cannot run this style just now: trying again"
                waited += RETRY_PAUSE_SECONDS
                await asyncio.sleep(RETRY_PAUSE_SECONDS)

    async def _stylize(self, visitor: Visitor, job: StylizeJob) -> None:
        """In a turn: read, stylize and keep the image."""

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
    """Without compression: it is read for every download and gone with the visitor."""
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
    """Of what is kept to be shown of an image, about."""
    scale = min(1.0, SHOWN_SIDE_PIXELS / max(width, height))
    return round(3 * width * scale * height * scale) + 1000


@contextmanager
def _kept_on_disk() -> Iterator[None]:
    """Turn what a disk says into a line for a visitor."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError("the page has forgotten your images meanwhile: give the image again") from error
    except OSError as error:
        raise InputError(f"the page cannot keep your image: {error.strerror or error}") from error
