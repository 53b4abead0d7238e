"""Which images are to be stylized, and which file each becomes."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from nst_client.stylize.stdio import STDIO
from nst_core.errors import InputError, NstError
from nst_core.images import (
    READABLE_SUFFIXES,
    UNREADABLE_SUFFIXES,
    WRITABLE_FORMATS,
    find_images,
    image_format,
    unreadable_images,
)

JPEG_SUFFIXES = frozenset({".jfif", ".jpe", ".mpo", ".heic", ".heif", ".hif", ".avif"})
"""Formats that are not written, and become JPEG: they are small, and lossy themselves."""


@dataclass(frozen=True)
class Job:
    """The file of a content image and the file of the stylized one; `named` if the user gave the target by its name."""

    source: Path
    target: Path
    named: bool = False


@dataclass(frozen=True)
class Outcome:
    """The result of a job: the size of the stylized image (pixels) and the time in the server, or the error.

    `skipped`: it was there already. `tried` is False after an error that all jobs would meet.
    """

    job: Job
    width: int = 0
    height: int = 0
    milliseconds: float = 0.0
    skipped: bool = False
    error: NstError | None = None
    tried: bool = True


def find_jobs(contents: Sequence[str], output: Path, suffix: str | None = None) -> list[Job]:
    """The jobs of the command's arguments.

    A content image is a file, a folder (its tree is kept below `output`), a pattern of files with `*`, `?`, `[...]` or
    `**` (all come into one folder), or `-`. `output` is a file for one image, else a folder, or `-`. A stylized image
    in a folder has the format of `suffix`, or the content image's; where that cannot be written, JPEG for HEIC, AVIF
    and other suffixes of JPEG, else PNG.
    Raises `InputError` if nothing is found, two images would become one file, or a content image would be overwritten.
    """
    found = list(dict.fromkeys(pair for argument in contents for pair in _find(argument, output)))
    if not found:
        raise InputError(f"no images but those in {output}")
    single = len(contents) == 1 and len(found) == 1 and not _is_folder(contents[0])
    if output == STDIO or STDIO in (source for source, _ in found):
        if not single:
            raise InputError("- is one image: give it alone")
        if _is_folder(output) or (output != STDIO and not output.suffix):
            raise InputError(f"an image from the standard input has no name for the folder {output}: name a file, or -")
    if single and (output == STDIO or (output.suffix and not _is_folder(output))):
        jobs = [_named_job(found[0][0], output, suffix)]
    elif not _is_folder(output) and (file_exists(output) or output.suffix.lower() in WRITABLE_FORMATS):
        raise InputError(f"{output} is a file; several images need a folder")
    else:
        jobs = [
            Job(source, output / below.with_suffix(suffix or output_suffix(below.suffix))) for source, below in found
        ]
    _check_targets(jobs)
    return jobs


def find_unreadable(contents: Sequence[str], output: Path) -> list[Path]:
    """Images in the folders and patterns of `find_jobs` that nst does not read, such as a camera's raw files."""
    found: dict[Path, None] = {}
    for argument in contents:
        path = Path(argument)
        if _is_folder(path):
            found |= dict.fromkeys(_outside(output, path, unreadable_images(path)))
        elif _is_pattern(argument):
            found |= dict.fromkeys(_matches(argument, UNREADABLE_SUFFIXES))
    return list(found)


def output_suffix(suffix: str) -> str:
    """The suffix of a stylized image for a content image's: the same, or JPEG's or PNG's if that cannot be written."""
    if suffix.lower() in WRITABLE_FORMATS:
        return suffix
    return ".jpg" if suffix.lower() in JPEG_SUFFIXES else ".png"


def _find(argument: str, output: Path) -> list[tuple[Path, Path]]:
    """The images of an argument, each with its path below the output folder."""
    path = Path(argument)
    if _is_folder(path):
        return [(image, image.relative_to(path)) for image in _outside(output, path, find_images(path))]
    if _is_pattern(argument):
        matches = _matches(argument, READABLE_SUFFIXES)
        if not matches:
            raise InputError(f"no image matches {argument}")
        return [(image, Path(image.name)) for image in matches]
    return [(path, Path(path.name))]


def _outside(output: Path, folder: Path, images: list[Path]) -> list[Path]:
    """The images of a folder without those in the output folder, if that is inside it: they are stylized."""
    if output == STDIO or os.path.realpath(output) == os.path.realpath(folder):
        return images
    prefix = f"{os.path.realpath(output)}/"
    return [image for image in images if not os.path.realpath(image).startswith(prefix)]


def _is_pattern(argument: str) -> bool:
    return glob.has_magic(argument) and not file_exists(argument)


def _matches(pattern: str, suffixes: Collection[str]) -> list[Path]:
    """The files that match a pattern and have one of the suffixes, sorted."""
    names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  Path's takes no absolute patterns
    return [path for path in map(Path, names) if path.suffix.lower() in suffixes and path.is_file()]


def _is_folder(path: Path | str) -> bool:
    """As `Path.is_dir`, which raises for a name that is too long."""
    return os.path.isdir(path)  # noqa: PTH112


def file_exists(path: Path | str) -> bool:
    """As `Path.exists`, which raises for a name that is too long."""
    return os.path.exists(path)  # noqa: PTH110


def _named_job(source: Path, output: Path, suffix: str | None) -> Job:
    kind = None if output == STDIO else image_format(output)
    if kind and suffix and kind != WRITABLE_FORMATS[suffix]:
        raise InputError(f"{output} and --format {suffix[1:]} disagree: give one of them")
    return Job(source, output, named=True)


def _check_targets(jobs: Sequence[Job]) -> None:
    """Raises `InputError` for clashing targets. Links are followed: the file that a link names would be replaced."""
    seen: dict[str, Job] = {}
    sources = {os.path.realpath(job.source) for job in jobs if job.source != STDIO}
    for job in jobs:
        if job.target == STDIO:
            continue
        target = os.path.realpath(job.target)
        if (other := seen.setdefault(target, job)) is not job:
            raise InputError(
                f"{other.source} and {job.source} would both become {job.target}: "
                "give them different names, or stylize them into different folders"
            )
        if target in sources:
            overwritten = job.source if target == os.path.realpath(job.source) else f"{target}, a content image,"
            raise InputError(f"{overwritten} would be overwritten: choose another folder than its own")
