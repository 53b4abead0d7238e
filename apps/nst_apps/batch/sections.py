"""Split long videos into sections by time, which any worker stylizes and the last one joins.

A frame belongs to the section in which it is shown, so no frame is lost or repeated, in whatever order the sections
are stylized. Stylized sections are in the output's hidden folder until the video is complete.
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

from nst_apps.batch.storage import OWN_FOLDER, Folder
from nst_apps.video.codec.decoder import VideoSource
from nst_apps.video.codec.encoder import Encoder, check_target
from nst_apps.video.codec.formats import Frame
from nst_apps.video.codec.joining import join_parts
from nst_client.client import StyleClient
from nst_client.stylize.processing import StylizeOptions
from nst_core.errors import ImageError, InputError, NstError
from nst_core.images import ImageData

SECTION_SECONDS = 20.0
"""Duration of a section, which must be stylized again if its worker is lost."""

SEPARATOR = "#"
"""Between the video's name and the section's number in the name of a section: `video.mp4#3/12`."""

_VERSION_KEYS = ("mtime", "ETag", "etag", "LastModified", "last_modified", "updated", "created")
"""Keys with which fsspec's file systems identify a file's version, the best first."""


@dataclass(frozen=True)
class Section:
    """Section `number`, from 0, of a video's `count` sections; number `count` means joining them."""

    video: str
    number: int
    count: int

    @classmethod
    def parse(cls, name: str) -> Section | None:
        """Parse a section's name; returns None for the name of an image."""
        video, separator, position = name.rpartition(SEPARATOR)
        number, _, count = position.partition("/")
        return cls(video, int(number), int(count)) if separator and number.isdigit() and count.isdigit() else None

    def __str__(self) -> str:
        return f"{self.video}{SEPARATOR}{self.number}/{self.count}"


@dataclass(frozen=True)
class SectionedVideo:
    """A video in `source` and its stylized video in `target`, with the same name."""

    source: Folder
    target: Folder
    video: str
    max_side: int | None = None

    def missing(self) -> list[Section]:
        """Return the sections that are not stylized yet.

        A video that cannot be read has a single section, whose worker reports the error.
        """
        try:
            given = self._source()
        except NstError:
            return [Section(self.video, 0, 1)]
        count = max(1, math.ceil(given.seconds / SECTION_SECONDS))
        existing = self._stylized_sections()
        missing = [Section(self.video, number, count) for number in range(count) if number not in existing]
        return missing or [Section(self.video, count, count)]

    def stylize(self, section: Section, options: StylizeOptions, client: StyleClient) -> None:
        """Stylize a section, unless a lost worker finished it, and join all if none is missing.

        Raises `ImageError`, `WriteError`, `InputError` for sound that the file cannot hold, and what
        `StyleClient.stylize` raises.
        """
        if self._is_complete():
            return
        if section.number < section.count and section.number not in self._stylized_sections():
            self._stylize(section, options, client)
        existing = self._stylized_sections()
        if existing.keys() != set(range(section.count)):
            return
        try:
            self._join(existing)
        except NstError:
            if not self._is_complete():  # otherwise another worker has joined them meanwhile
                raise

    def _stylize(self, section: Section, options: StylizeOptions, client: StyleClient) -> None:
        given = self._source()
        ticks = SECTION_SECONDS / given.format.time_base
        first = given.start + section.number * ticks if section.number else -math.inf
        until = given.start + (section.number + 1) * ticks if section.number + 1 < section.count else math.inf
        frames = 0
        with TemporaryDirectory(prefix="nst-") as scratch:
            part = Path(scratch) / "part.nut"
            with Encoder(part, given.format, self._codec) as encoder:
                for frame in given.between(first, until):
                    stylized, _ = options.stylize(ImageData(frame.pixels), client)
                    encoder.add(Frame(stylized.pixels, frame.pts))
                    frames += 1
            # A section without a frame, in a video with a long still, is an empty file.
            name = f"{section.number}-{frames}-{given.end}.nut"
            self.target.write(f"{self._folder}/{name}", part.read_bytes() if frames else b"")

    def _join(self, sections: Mapping[int, str]) -> None:
        given = self._source()
        with self.target.scratch() as scratch:
            parts = []
            for number, name in sorted(sections.items()):
                frames, end = (int(part) for part in name.removesuffix(".nut").split("-")[1:])
                if frames:
                    parts.append(scratch / f"{number}.nut")
                    self.target.fetch(f"{self._folder}/{name}", parts[-1])
                    given.end = end
            if not parts:
                raise ImageError(f"{self.video} has no frame that can be decoded")
            whole = scratch / f"whole{splitext(self.video)[1].lower()}"
            join_parts(parts, given, whole)
            self.target.put(whole, self.video)
        self.target.remove(self._sections)

    def _is_complete(self) -> bool:
        folder, _, name = self.video.rpartition("/")
        return name in self.target.names(folder)

    @property
    def _codec(self) -> str:
        return "vp9" if splitext(self.video)[1].lower() == ".webm" else "h264"

    @property
    def _folder(self) -> str:
        # Sections from another encoder version, or from another file with this name, do not fit together.
        return f"{self._sections}/{av.__version__}-{self._version}"

    @property
    def _sections(self) -> str:
        return f"{OWN_FOLDER}/sections/{self.video}"

    @property
    def _version(self) -> str:
        """A key that changes when the video is replaced. Raises `InputError`."""
        root, system = self.source.root, self.source.file_system
        try:
            info = system.info(f"{root}/{self.video}")
        except Exception as error:  # each storage has its own errors
            raise InputError(f"cannot read {self.video}: {error}") from error
        version = next((info[key] for key in _VERSION_KEYS if info.get(key)), None)
        return hashlib.sha256(f"{info.get('size')} {version}".encode()).hexdigest()[:16]

    def _stylized_sections(self) -> dict[int, str]:
        """Return the files of the stylized sections, by number."""
        return {int(name.partition("-")[0]): name for name in self.target.names(self._folder)}

    def _source(self) -> VideoSource:
        on_disk = self.source.on_disk(self.video)
        opened = None if on_disk else partial(self.source.open, self.video)
        given = VideoSource(on_disk or Path(self.video), max_side=self.max_side, opened=opened)
        check_target(Path(self.video), self._codec, None, given)
        return given
