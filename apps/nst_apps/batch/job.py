"""A batch job: which images and videos are to be stylized, and stylizing them.

The job's work is what the input has and the output lacks, folder by folder, so a job that was stopped continues where
it was.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from posixpath import splitext
from typing import Any

from nst_apps.batch.sections import Section, SectionedVideo
from nst_apps.batch.storage import OWN_FOLDER, Folder
from nst_apps.video.codec.formats import CONTAINERS
from nst_client.client import StyleClient
from nst_client.stylize.jobs import output_suffix
from nst_client.stylize.processing import StylizeOptions
from nst_core.errors import InputError
from nst_core.images import READABLE_SUFFIXES, UNREADABLE_SUFFIXES, check_size, encode_image, image_format

JOB_FILE = f"{OWN_FOLDER}/job.json"
"""Where an output records its job: "nst-batch/2", before that "nst-batch/1"."""


@dataclass(frozen=True)
class FolderListing:
    """A folder's images and sections of videos that are missing in the output, and how many files exist there."""

    missing: list[str]
    existing: int


@dataclass(frozen=True)
class BatchJob:
    """Images and videos below `source`, stylized into the same tree below `target`.

    `suffix` is that of stylized images, with its dot; by default the content image's, PNG where that cannot be
    written. A video keeps its own.
    """

    source: Folder
    target: Folder
    options: StylizeOptions
    suffix: str | None = None
    unreadable: list[Path] = field(default_factory=list, compare=False)
    """Images that `listings` found and that nst does not read."""

    @property
    def record(self) -> dict[str, str]:
        """What makes two runs the same job."""
        return {"format": "nst-batch/2", "command": self.options.command, "suffix": self.suffix or ""}

    def target_of(self, content: str) -> str:
        """Return the stylized image of a content image, both below their folders."""
        stem, suffix = splitext(content)
        return stem + (self.suffix or output_suffix(suffix))

    def begin(self) -> bool:
        """Return whether the output belongs to this job already; nothing is written yet.

        Raises `InputError` if it belongs to another job, or if the job would overwrite the content images.
        """
        if self.target.contains(self.source):
            raise InputError(f"{self.target.url} has the content images in it: choose another folder")
        begun = Path(JOB_FILE).name in self.target.names(OWN_FOLDER)
        if begun:
            try:
                record = read_record(self.target.read(JOB_FILE))
            except ValueError as error:
                raise InputError(
                    f"{JOB_FILE} in {self.target.url} is damaged ({error}): choose another folder"
                ) from error
            if record != self.record:
                raise InputError(
                    f"{self.target.url} is of another job ({record.get('command')} {record.get('suffix')}): "
                    "choose another folder"
                )
        return begun

    def listings(self, begun: bool) -> Iterator[FolderListing]:
        """Yield the work in each folder. A video counts by its missing sections.

        Raises `InputError` if two content images would become one file, or a file exists and no job has begun.
        """
        inside = self.source.contains(self.target)
        for folder, names in self.source.folders():
            if inside and self.target.contains(replace(self.source, root=f"{self.source.root}/{folder}".rstrip("/"))):
                continue
            contents = self._contents(folder, names)
            existing = contents.keys() & self.target.names(folder) if contents else set()
            prefix = f"{folder}/" if folder else ""
            if existing and not begun:
                raise InputError(
                    f"{self.target.url} has {prefix}{min(existing)} already, and not from nst batch: "
                    "choose another folder"
                )
            missing: list[str] = []
            for target, content in contents.items():
                if target not in existing:
                    name = prefix + content
                    missing += map(str, self._video(name).missing()) if _is_video(name) else [name]
            yield FolderListing(missing, len(existing))

    def _contents(self, folder: str, names: list[str]) -> dict[str, str]:
        """Return the images and videos of a folder, by the names of their targets. Raises `InputError` for clashing names."""
        prefix = f"{folder}/" if folder else ""
        contents: dict[str, str] = {}
        for name in names:
            suffix = splitext(name)[1].lower()
            if not _is_video(name) and suffix not in READABLE_SUFFIXES:
                if suffix in UNREADABLE_SUFFIXES:
                    self.unreadable.append(Path(prefix + name))
                continue
            target = name if _is_video(name) else self.target_of(name)
            if target in contents:
                raise InputError(
                    f"{prefix}{contents[target]} and {prefix}{name} would both become {prefix}{target}: "
                    "give them different names"
                )
            contents[target] = name
        return contents

    def claim(self) -> None:
        """Record the job in the output, and remove unfinished files of a killed run. Raises `WriteError`."""
        self.target.prepare()
        self.target.write(JOB_FILE, json.dumps(self.record).encode())

    def stylize(self, name: str, client: StyleClient) -> None:
        """Read, stylize and write an image or a section of a video.

        Raises `ImageError`, `WriteError`, and what `StyleClient.stylize` raises.
        """
        if section := Section.parse(name):
            self._video(section.video).stylize(section, self.options, client)
            return
        file = io.BytesIO(self.source.read(name))
        file.name = name  # for messages of errors
        content, target = self.options.open(file), self.target_of(name)
        kind = image_format(Path(target))
        check_size(content.width, content.height, kind)  # before the model works in vain
        stylized, _ = self.options.stylize(content, client)
        self.target.write(target, encode_image(stylized, kind, quality=self.options.quality))

    def _video(self, video: str) -> SectionedVideo:
        return SectionedVideo(self.source, self.target, video, self.options.max_side)


def read_record(data: bytes) -> dict[str, Any]:
    """Return the record of a job that an output holds. Raises `ValueError`."""
    record = json.loads(data)
    if not isinstance(record, dict):
        raise ValueError("not an object")
    return _from_version_1(record) if record.get("format") == "nst-batch/1" else record


def _from_version_1(record: dict[str, Any]) -> dict[str, Any]:
    """Version 1 called the command `paint`."""
    command = record.get("paint")
    return {"format": "nst-batch/2", "command": command, "suffix": record.get("suffix")}


def _is_video(name: str) -> bool:
    return splitext(name)[1].lower() in CONTAINERS
