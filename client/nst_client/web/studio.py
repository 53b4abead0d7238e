"""The visitors, their photographs and their paintings; each sees their own alone.

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

from nst_client.errors import Unavailable, UnknownStyle, Unreachable
from nst_client.styles import resolve_style_weights
from nst_client.stylize.processing import StylizeOptions, postprocess
from nst_client.web.server import Server
from nst_core.errors import InputError, NstError
from nst_core.images import WRITABLE_FORMATS, ImageData, encode_image, open_image, resize

SHOWN = 1600
"""Longer side of what the page shows, pixels; what is downloaded has the painting's own size."""

AT_ONCE = 2
"""Paintings that are read, painted and written at a time: while one waits for the server, another is read."""

FORGOTTEN = 3600.0
"""Seconds after which a visitor who has not been seen is forgotten, with all files."""

VISITORS, PHOTOS, PAINTINGS = 200, 8, 24
"""The most that is kept: of visitors, and of a visitor; the oldest go first."""

DISK, FREE = 8_000_000_000, 500_000_000
"""Bytes that all visitors' files take together at most, and those that are left free on the disk for others."""

AWAY = 300.0
"""Seconds after which a visitor who has not been seen makes room for others: an open page asks far more often."""

PATIENCE, PAUSE, CUTS = 120.0, 2.0, 5
"""A painting is given up when its model has been unavailable for so many seconds, asked again after each pause, or when
the server was cut off so many times while it painted it: then the picture may be what ends the server."""

log = logging.getLogger("nst_client")

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask for: the bytes of a file, the pixels of a picture, and the paintings that wait.

    `disk` and `free` are bytes, see `DISK`.
    """

    upload: int
    pixels: int
    jobs: int
    disk: int = DISK
    free: int = FREE


@dataclass(frozen=True)
class Photo:
    """A photograph that a visitor gave: the file as it came, its name and its size in pixels, upright."""

    name: str
    file: Path
    width: int
    height: int


@dataclass
class Painting:
    """A photograph's painting, or what has become of it so far; `tiles` are those done and all."""

    name: str
    photo: Photo
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
        """It is still to be done."""
        return self.status in ("waiting", "painting")


@dataclass
class Visitor:
    """Whoever has the secret: `key` is its hash, `kept` are the bytes of the photographs' and paintings' files."""

    key: str
    folder: Path
    photos: dict[str, Photo] = field(default_factory=dict)
    paintings: dict[str, Painting] = field(default_factory=dict)
    seen: float = field(default_factory=time.monotonic)
    live: bool = False
    kept: dict[str, int] = field(default_factory=dict)

    @property
    def idle(self) -> float:
        """Seconds for which the visitor has not been seen; 0 while the camera is live."""
        return 0.0 if self.live else time.monotonic() - self.seen


class Studio:
    """All visitors, and the queue of their paintings."""

    def __init__(self, server: Server, folder: Path, limits: Limits) -> None:
        self.server, self.folder, self.limits = server, folder, limits
        self.visitors: dict[str, Visitor] = {}
        self._numbers = count()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._hands = asyncio.Semaphore(AT_ONCE)

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

    async def take(self, visitor: Visitor, data: bytes) -> Photo:
        """A photograph from the bytes of its file. Raises `ImageError`, and `InputError` for a full disk."""
        picture = await self.worked(open_image, io.BytesIO(data), max_pixels=self.limits.pixels)
        name = secrets.token_hex(8)
        photo = Photo(name, visitor.folder / name, picture.width, picture.height)
        with self._room(visitor, photo.file, len(data) + _shown_bytes(picture.width, picture.height)):
            await self.worked(_keep_photo, photo, picture, data)
        visitor.photos[name] = photo
        for old in list(visitor.photos)[:-PHOTOS]:
            if not any(painting.photo.name == old for painting in visitor.paintings.values()):
                self._remove(visitor, visitor.photos.pop(old).file)
        return photo

    def order(self, visitor: Visitor, photo: Photo, style: Mapping[str, float], max_side: int | None) -> Painting:
        """Put a painting into the queue. Raises `InputError` for a mix that cannot be, or one painting too many."""
        if sum(painting.pending for painting in visitor.paintings.values()) >= self.limits.jobs:
            raise InputError(
                f"{self.limits.jobs} of your paintings are waiting, and no more may: wait for one, or remove one"
            )
        self.check(style, photo, max_side)
        name = secrets.token_hex(8)
        painting = Painting(name, photo, style, max_side, visitor.folder / name, next(self._numbers))
        visitor.paintings[name] = painting
        painting.task = asyncio.create_task(self._paint(visitor, painting))
        settled = [old for old in visitor.paintings.values() if not old.pending]
        for old in settled[: max(0, len(visitor.paintings) - PAINTINGS)]:
            self.remove(visitor, old)
        return painting

    def check(self, style: Mapping[str, float], photo: Photo | None = None, max_side: int | None = None) -> None:
        """Raise `UnknownStyle` or `InputError` for what the server, when it was last looked at, cannot paint."""
        offered = {known.name: known for known in self.server.styles}
        if missing := [name for name in style if name not in offered]:
            raise UnknownStyle(f"there is no style {missing[0]!r} here now")
        first, _ = resolve_style_weights([offered[name] for name in style], list(style.values()))
        if photo and first.tiles is None:
            longer = max(photo.width, photo.height)
            scale = min(1.0, (max_side or longer) / longer)
            height, width = round(photo.height * scale), round(photo.width * scale)
            if not first.takes(height, width):
                fitting = first.fitting_side(height, width)
                raise InputError(f"{first.name} paints this picture up to {fitting} pixels here: choose a smaller size")

    def remove(self, visitor: Visitor, painting: Painting) -> None:
        """Forget a painting, also one that waits or is being made."""
        if painting.task:
            painting.task.cancel()
        visitor.paintings.pop(painting.name, None)
        self._remove(visitor, painting.file)

    def before(self, painting: Painting) -> int:
        """How many paintings, whosever, come first."""
        everybody = (one for visitor in self.visitors.values() for one in visitor.paintings.values())
        return sum(one.pending and one.number < painting.number for one in everybody)

    async def shown_before(self, photo: Photo) -> bytes:
        """JPEG of a photograph, at most `SHOWN` pixels a side."""
        return await self.worked(lambda: encode_image(ImageData(np.load(_small(photo.file))), "JPEG", quality=88))

    async def shown(self, painting: Painting, recipe: StylizeOptions) -> bytes:
        """JPEG of a finished painting, at most `SHOWN` pixels a side, with the recipe's strength and colours."""
        return await self.worked(_shown, painting, recipe)

    async def whole(self, painting: Painting, recipe: StylizeOptions) -> tuple[bytes, str]:
        """The file of a finished painting at its own size, and Pillow's name of its format: the photograph's own."""
        return await self.worked(_whole, painting, recipe, self.limits.pixels)

    async def worked(self, work: Callable[..., T], *arguments: Any, **more: Any) -> T:
        """What `work` returns, by a thread; few at a time, since a picture takes memory."""
        async with self._hands:
            return await asyncio.to_thread(work, *arguments, **more)

    async def sweep(self) -> None:
        """Forget those who have gone, for ever and ever."""
        while True:
            await asyncio.sleep(60)
            for visitor in list(self.visitors.values()):
                if visitor.idle > FORGOTTEN:
                    self._forget(visitor)

    async def close(self) -> None:
        """End all that is being painted."""
        tasks = [one.task for visitor in self.visitors.values() for one in visitor.paintings.values() if one.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _make_room(self) -> None:
        while len(self.visitors) >= VISITORS:
            leaving = [visitor for visitor in self.visitors.values() if not visitor.live]
            if not leaving:
                raise InputError(f"{VISITORS} visitors have their cameras on, and no more fit: try again later")
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
                leaving = [known for known in self.visitors.values() if known is not visitor and known.idle > AWAY]
                if not leaving:
                    raise InputError("the page has no room for it: remove paintings of yours, or try again later")
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
        for painting in list(visitor.paintings.values()):
            self.remove(visitor, painting)
        del self.visitors[visitor.key]
        shutil.rmtree(visitor.folder, ignore_errors=True)

    async def _paint(self, visitor: Visitor, painting: Painting) -> None:
        try:
            await self._tried(visitor, painting)
            painting.status, painting.error = "done", ""
        except NstError as error:
            painting.status, painting.error = "failed", str(error)
        except Exception as error:  # nobody awaits this task: what is not told here is never told
            log.exception("a painting in %s", ", ".join(painting.style))
            painting.status = "failed"
            painting.error = f"a fault of nst web ({type(error).__name__}): its terminal says more"

    async def _tried(self, visitor: Visitor, painting: Painting) -> None:
        """By the server, when it is there: one that goes away and comes back costs time and no painting.

        Who waits for a server or a model has no turn meanwhile. Raises `Unavailable` and `Unreachable` when it was
        long enough.
        """
        waited, cuts = 0.0, 0
        while True:
            await self.server.up.wait()
            try:
                async with self._turns:
                    await self._painted(visitor, painting)
                return
            except Unreachable as error:
                self.server.lost(error)
                cuts += 1
                if cuts == CUTS:
                    raise Unreachable(f"the painter went away {CUTS} times while it painted this: {error}") from error
            except Unavailable as error:
                if waited >= PATIENCE:
                    raise Unavailable(
                        f"the painter cannot paint in this style now, try again later: {error}"
                    ) from error
                painting.error = "the painter cannot paint in this style just now: trying again"
                waited += PAUSE
                await asyncio.sleep(PAUSE)

    async def _painted(self, visitor: Visitor, painting: Painting) -> None:
        """In a turn: read, painted and kept."""

        def on_tile(done: int, total: int) -> None:
            painting.tiles = done, total

        painting.status = "painting"
        try:
            picture = await self.worked(
                open_image, painting.photo.file, max_pixels=self.limits.pixels, max_side=painting.max_side
            )
            pixels = await self.server.client.stylize(picture.pixels, painting.style, on_tile=on_tile)
            size = pixels.nbytes + _shown_bytes(picture.width, picture.height)
            with self._room(visitor, painting.file, size):
                await self.worked(_keep_painting, painting, pixels)
        finally:
            painting.status, painting.tiles = "waiting", (0, 0)


def _keep_photo(photo: Photo, picture: ImageData, data: bytes) -> None:
    photo.file.write_bytes(data)
    np.save(_small(photo.file), _fit(picture).pixels)


def _keep_painting(painting: Painting, pixels: Any) -> None:
    """Without compression: it is read for every download and gone with the visitor."""
    with painting.file.open("wb") as file:
        np.save(file, pixels)
    np.save(_small(painting.file), _fit(ImageData(pixels)).pixels)


def _shown(painting: Painting, recipe: StylizeOptions) -> bytes:
    painted = np.load(_small(painting.file))
    photo = resize(ImageData(np.load(_small(painting.photo.file))), painted.shape[1], painted.shape[0]).pixels
    result = postprocess(photo, painted, recipe.strength, recipe.preserve_color)
    return encode_image(ImageData(result), "JPEG", quality=88)


def _whole(painting: Painting, recipe: StylizeOptions, max_pixels: int) -> tuple[bytes, str]:
    picture = open_image(painting.photo.file, max_pixels=max_pixels, max_side=painting.max_side)
    pixels = postprocess(picture.pixels, np.load(painting.file), recipe.strength, recipe.preserve_color)
    kind = picture.metadata.kind if picture.metadata.kind in WRITABLE_FORMATS.values() else "PNG"
    result = replace(picture, pixels=pixels, metadata=replace(picture.metadata, process=recipe.command))
    return encode_image(result, kind, quality=recipe.quality), kind


def _fit(picture: ImageData) -> ImageData:
    scale = min(1.0, SHOWN / max(picture.width, picture.height))
    return resize(picture, max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))


def _small(file: Path) -> Path:
    return file.with_suffix(".npy")


def _shown_bytes(width: int, height: int) -> int:
    """Of what is kept to be shown of a picture, about."""
    scale = min(1.0, SHOWN / max(width, height))
    return round(3 * width * scale * height * scale) + 1000


@contextmanager
def _kept_on_disk() -> Iterator[None]:
    """Turn what a disk says into a line for a visitor."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError("the page has forgotten your pictures meanwhile: give the picture again") from error
    except OSError as error:
        raise InputError(f"the page cannot keep your picture: {error.strerror or error}") from error
