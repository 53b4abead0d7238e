"""Long videos on many workers: cut into sections by time, each painted by whoever is free, joined when all are there.

A frame belongs to the section in which it is shown, so none is lost and none comes twice, whoever paints what in
whatever order. What is painted lies in the output's own folder until the film is whole.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from posixpath import splitext
from tempfile import TemporaryDirectory

import av

from nst_client.batch.storage import OWN, Folder
from nst_client.client import StyleClient
from nst_client.stylize.jobs import StylizeOptions
from nst_client.video.codec.decoder import VideoSource
from nst_client.video.codec.encoder import Encoder, check_target
from nst_client.video.codec.formats import Frame
from nst_client.video.codec.joining import join_parts
from nst_core.errors import ImageError, InputError, NstError
from nst_core.images import ImageData

SECONDS = 20.0
"""Of a section: what a lost worker has to paint again."""

MARK = "#"
"""Between a video's name and the section's number in the name of a section: `film.mp4#3/12`."""


_CHANGED = ("mtime", "ETag", "etag", "LastModified", "last_modified", "updated", "created")
"""What fsspec's file systems call the mark of a file's version, the best first."""


@dataclass(frozen=True)
class Section:
    """Number `number`, from 0 on, of the `count` sections of a video; number `count` is to join them."""

    video: str
    number: int
    count: int

    @classmethod
    def of(cls, name: str) -> Section | None:
        """By its name; None for the name of a picture."""
        video, mark, place = name.rpartition(MARK)
        number, _, count = place.partition("/")
        return cls(video, int(number), int(count)) if mark and number.isdigit() and count.isdigit() else None

    def __str__(self) -> str:
        return f"{self.video}{MARK}{self.number}/{self.count}"


@dataclass(frozen=True)
class SectionedVideo:
    """A video of `source` and its painting in `target`, both below their folders by the same name."""

    source: Folder
    target: Folder
    video: str
    max_side: int | None = None

    def missing(self) -> list[Section]:
        """The sections that are not painted.

        For a video that cannot be painted it is one section: whoever tries will say why.
        """
        try:
            given = self._source()
        except NstError:
            return [Section(self.video, 0, 1)]
        count = max(1, math.ceil(given.seconds / SECONDS))
        there = self._painted()
        left = [Section(self.video, number, count) for number in range(count) if number not in there]
        return left or [Section(self.video, count, count)]

    def paint(self, section: Section, recipe: StylizeOptions, client: StyleClient) -> None:
        """Paint a section, and join all if it was the last one. What is there, of a worker that was lost, is enough.

        Raises `ImageError`, `WriteError`, `InputError` for sound that the file cannot hold, and what `stylize`
        raises.
        """
        if self._whole():
            return
        if section.number < section.count and section.number not in self._painted():
            self._paint(section, recipe, client)
        there = self._painted()
        if there.keys() != set(range(section.count)):
            return
        try:
            self._join(there)
        except NstError:
            if not self._whole():  # else whoever painted another last section was sooner
                raise

    def _paint(self, section: Section, recipe: StylizeOptions, client: StyleClient) -> None:
        given = self._source()
        ticks = SECONDS / given.format.time_base
        first = given.start + section.number * ticks if section.number else -math.inf
        until = given.start + (section.number + 1) * ticks if section.number + 1 < section.count else math.inf
        frames = 0
        with TemporaryDirectory(prefix="nst-") as scratch:
            part = Path(scratch) / "part.nut"
            with Encoder(part, given.format, self._codec) as encoder:
                for frame in given.between(first, until):
                    painted, _ = recipe.painting(ImageData(frame.pixels), client)
                    encoder.add(Frame(painted.pixels, frame.pts))
                    frames += 1
            # A section without a frame, of a video that stands still, is an empty file.
            name = f"{section.number}-{frames}-{given.end}.nut"
            self.target.write(f"{self._folder}/{name}", part.read_bytes() if frames else b"")

    def _join(self, sections: Mapping[int, str]) -> None:
        given = self._source()
        with self.target.scratch() as scratch:
            parts = []
            for number, name in sorted(sections.items()):
                frames, end = (int(one) for one in name.removesuffix(".nut").split("-")[1:])
                if frames:
                    parts.append(scratch / f"{number}.nut")
                    self.target.fetch(f"{self._folder}/{name}", parts[-1])
                    given.end = end
            if not parts:
                raise ImageError(f"{self.video}: no frame of it can be decoded")
            whole = scratch / f"whole{splitext(self.video)[1].lower()}"
            join_parts(parts, given, whole)
            self.target.put(whole, self.video)
        self.target.remove(self._sections)

    def _whole(self) -> bool:
        folder, _, name = self.video.rpartition("/")
        return name in self.target.names(folder)

    @property
    def _codec(self) -> str:
        return "vp9" if splitext(self.video)[1].lower() == ".webm" else "h264"

    @property
    def _folder(self) -> str:
        # Of an encoder of another version, or of another file by this name, the parts would not fit together.
        return f"{self._sections}/{av.__version__}-{self._version}"

    @property
    def _sections(self) -> str:
        return f"{OWN}/sections/{self.video}"

    @property
    def _version(self) -> str:
        """What differs when the video is replaced, as its storage tells it. Raises `InputError`."""
        root, system = self.source.root, self.source.file_system
        try:
            known = system.info(f"{root}/{self.video}")
        except Exception as error:  # each storage has its own
            raise InputError(f"{self.video}: cannot be read: {error}") from error
        changed = next((known[key] for key in _CHANGED if known.get(key)), None)
        return hashlib.sha256(f"{known.get('size')} {changed}".encode()).hexdigest()[:16]

    def _painted(self) -> dict[int, str]:
        """The files of the sections that are there, by number."""
        return {int(name.partition("-")[0]): name for name in self.target.names(self._folder)}

    def _source(self) -> VideoSource:
        on_disk = self.source.on_disk(self.video)
        opened = None if on_disk else partial(self.source.open, self.video)
        given = VideoSource(on_disk or Path(self.video), max_side=self.max_side, opened=opened)
        check_target(Path(self.video), self._codec, None, given)
        return given
