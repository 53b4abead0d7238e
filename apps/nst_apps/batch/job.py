"""A batch job: find the images and videos to stylize, and stylize them.

The work is what the input has and the output lacks, folder by folder, so a stopped job continues where it was.
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
"""The record of an output's job: "nst-batch/2", earlier "nst-batch/1"."""


@dataclass(frozen=True)
class FolderListing:
    """A folder's images and video sections that the output lacks, and how many files exist there."""

    missing: list[str]
    existing: int


@dataclass(frozen=True)
class BatchJob:
    """Images and videos below `source`, stylized into the same tree below `target`.

    `suffix` is the suffix of stylized images, with its dot; by default the content image's, or PNG if nst does not
    write that. A video keeps its own.
    """

    source: Folder
    target: Folder
    options: StylizeOptions
    suffix: str | None = None
    unreadable: list[Path] = field(default_factory=list, compare=False)
    """Images found by `listings` that nst does not read."""

    @property
    def record(self) -> dict[str, str]:
        """The settings that make two runs the same job."""
        return {"format": "nst-batch/2", "command": self.options.command, "suffix": self.suffix or ""}

    def target_of(self, content: str) -> str:
        """Return the stylized image's path for a content image's, both relative to their folders."""
        stem, suffix = splitext(content)
        return stem + (self.suffix or output_suffix(suffix))

    def begin(self) -> bool:
        """Return whether the output belongs to this job already, without writing anything.

        Raises `InputError` if it belongs to another job, or if the job would overwrite the content images.
        """
        if self.target.contains(self.source):
            raise InputError(f"{self.target.url} contains the content images; choose another OUTPUT")
        begun = Path(JOB_FILE).name in self.target.names(OWN_FOLDER)
        if begun:
            try:
                record = read_record(self.target.read(JOB_FILE))
            except ValueError as error:
                raise InputError(
                    f"{JOB_FILE} in {self.target.url} is damaged ({error}); choose another OUTPUT"
                ) from error
            if record != self.record:
                raise InputError(
                    f"{self.target.url} belongs to another job ({record.get('command')} {record.get('suffix')}); "
                    "choose another OUTPUT"
                )
        return begun

    def listings(self, begun: bool) -> Iterator[FolderListing]:
        """Yield the work in each folder; a video counts by its missing sections.

        Raises `InputError` if two content images have the same target, or a target exists and no job has begun.
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
                    f"{self.target.url} has {prefix}{min(existing)}, which is not from nst batch; choose another OUTPUT"
                )
            missing: list[str] = []
            for target, content in contents.items():
                if target not in existing:
                    name = prefix + content
                    missing += map(str, self._video(name).missing()) if _is_video(name) else [name]
            yield FolderListing(missing, len(existing))

    def _contents(self, folder: str, names: list[str]) -> dict[str, str]:
        """Return a folder's images and videos, by the names of their targets. Raises `InputError` for clashes."""
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
                    f"{prefix}{contents[target]} and {prefix}{name} would both become {prefix}{target}; rename one"
                )
            contents[target] = name
        return contents

    def claim(self) -> None:
        """Record the job in the output, and remove a killed run's unfinished files. Raises `WriteError`."""
        self.target.prepare()
        self.target.write(JOB_FILE, json.dumps(self.record).encode())

    def stylize(self, name: str, client: StyleClient) -> None:
        """Read, stylize and write an image or a video section.

        Raises `ImageError`, `WriteError`, and what `StyleClient.stylize` raises.
        """
        if section := Section.parse(name):
            self._video(section.video).stylize(section, self.options, client)
            return
        file = io.BytesIO(self.source.read(name))
        file.name = name  # for error messages
        content, target = self.options.open(file), self.target_of(name)
        kind = image_format(Path(target))
        check_size(content.width, content.height, kind)  # before the model does the work in vain
        stylized, _ = self.options.stylize(content, client)
        self.target.write(target, encode_image(stylized, kind, quality=self.options.quality))

    def _video(self, video: str) -> SectionedVideo:
        return SectionedVideo(self.source, self.target, video, self.options.max_side)


def read_record(data: bytes) -> dict[str, Any]:
    """Parse an output's record of its job. Raises `ValueError`."""
    record = json.loads(data)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return _from_version_1(record) if record.get("format") == "nst-batch/1" else record


def _from_version_1(record: dict[str, Any]) -> dict[str, Any]:
    """Convert a record of version 1, which calls the command `paint`."""
    command = record.get("paint")
    return {"format": "nst-batch/2", "command": command, "suffix": record.get("suffix")}


def _is_video(name: str) -> bool:
    return splitext(name)[1].lower() in CONTAINERS
