"""Which images to stylize, and where to write each."""

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
"""Lossy formats that nst reads but does not write; their stylized images become JPEG."""


@dataclass(frozen=True)
class Job:
    """A content image's file and the target file; `named` if the user named the target itself, not its folder."""

    source: Path
    target: Path
    named: bool = False


@dataclass(frozen=True)
class Outcome:
    """The result of a job: the stylized image's size in pixels and the server's latency, or the error.

    `skipped` if the target existed already. `tried` is False after an error that every job would meet.
    """

    job: Job
    width: int = 0
    height: int = 0
    milliseconds: float = 0.0
    skipped: bool = False
    error: NstError | None = None
    tried: bool = True


def find_jobs(contents: Sequence[str], output: Path, suffix: str | None = None) -> list[Job]:
    """Return the jobs for the command's arguments.

    Each of `contents` is a file, a folder (`output` gets the same tree), a pattern with `*`, `?`, `[...]` or `**`
    (all its files go into one folder), or `-`. `output` is a file for a single image, a folder, or `-`. A stylized
    image in a folder has the format of `suffix`, or the content image's; if that cannot be written, JPEG for HEIC,
    AVIF and other suffixes of JPEG, else PNG.

    Raises `InputError` if nothing is found, two images have the same target, or a content image would be overwritten.
    """
    found = list(dict.fromkeys(pair for argument in contents for pair in _find(argument, output)))
    if not found:
        raise InputError(f"found only images in the output folder {output}; choose another output folder")
    single = len(contents) == 1 and len(found) == 1 and not _is_folder(contents[0])
    if output == STDIO or STDIO in (source for source, _ in found):
        if not single:
            raise InputError("- is a single image; give it without other images")
        if _is_folder(output) or (output != STDIO and not output.suffix):
            raise InputError(f"an image from stdin has no name in the folder {output}; give --output a file, or -")
    if single and (output == STDIO or (output.suffix and not _is_folder(output))):
        jobs = [_named_job(found[0][0], output, suffix)]
    elif not _is_folder(output) and (file_exists(output) or output.suffix.lower() in WRITABLE_FORMATS):
        raise InputError(f"{output} is a file, but there are several images; give --output a folder")
    else:
        jobs = [
            Job(source, output / below.with_suffix(suffix or output_suffix(below.suffix))) for source, below in found
        ]
    _check_targets(jobs)
    return jobs


def find_unreadable(contents: Sequence[str], output: Path) -> list[Path]:
    """Return the images of folders and patterns that nst does not read, such as a camera's raw files."""
    found: dict[Path, None] = {}
    for argument in contents:
        path = Path(argument)
        if _is_folder(path):
            found |= dict.fromkeys(_outside(output, path, unreadable_images(path)))
        elif _is_pattern(argument):
            found |= dict.fromkeys(_matches(argument, UNREADABLE_SUFFIXES))
    return list(found)


def output_suffix(suffix: str) -> str:
    """Return a stylized image's suffix: the content image's, or JPEG's or PNG's if nst does not write that."""
    if suffix.lower() in WRITABLE_FORMATS:
        return suffix
    return ".jpg" if suffix.lower() in JPEG_SUFFIXES else ".png"


def _find(argument: str, output: Path) -> list[tuple[Path, Path]]:
    """Return the images of an argument, each with its path below the output folder."""
    path = Path(argument)
    if _is_folder(path):
        return [(image, image.relative_to(path)) for image in _outside(output, path, find_images(path))]
    if _is_pattern(argument):
        matches = _matches(argument, READABLE_SUFFIXES)
        if not matches:
            raise InputError(f"no image matches {argument}; check the pattern")
        return [(image, Path(image.name)) for image in matches]
    return [(path, Path(path.name))]


def _outside(output: Path, folder: Path, images: list[Path]) -> list[Path]:
    """Return the images of a folder except those in an output folder inside it, which are stylized already."""
    if output == STDIO or os.path.realpath(output) == os.path.realpath(folder):
        return images
    prefix = f"{os.path.realpath(output)}/"
    return [image for image in images if not os.path.realpath(image).startswith(prefix)]


def _is_pattern(argument: str) -> bool:
    return glob.has_magic(argument) and not file_exists(argument)


def _matches(pattern: str, suffixes: Collection[str]) -> list[Path]:
    """Return the files that match a pattern and have one of the suffixes, sorted."""
    names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  Path's takes no absolute patterns
    return [path for path in map(Path, names) if path.suffix.lower() in suffixes and path.is_file()]


def _is_folder(path: Path | str) -> bool:
    """Return what `Path.is_dir` returns, but False for a name that is too long."""
    return os.path.isdir(path)  # noqa: PTH112


def file_exists(path: Path | str) -> bool:
    """Return what `Path.exists` returns, but False for a name that is too long."""
    return os.path.exists(path)  # noqa: PTH110


def _named_job(source: Path, output: Path, suffix: str | None) -> Job:
    kind = None if output == STDIO else image_format(output)
    if kind and suffix and kind != WRITABLE_FORMATS[suffix]:
        raise InputError(f"{output} and --format {suffix[1:]} name different formats; leave out --format")
    return Job(source, output, named=True)


def _check_targets(jobs: Sequence[Job]) -> None:
    """Raise `InputError` for clashing targets. Links are followed, since the file behind a link would be replaced."""
    seen: dict[str, Job] = {}
    sources = {os.path.realpath(job.source) for job in jobs if job.source != STDIO}
    for job in jobs:
        if job.target == STDIO:
            continue
        target = os.path.realpath(job.target)
        if (other := seen.setdefault(target, job)) is not job:
            raise InputError(
                f"{other.source} and {job.source} would both become {job.target}; "
                "rename one, or give them different output folders"
            )
        if target in sources:
            overwritten = job.source if target == os.path.realpath(job.source) else f"{target}, a content image,"
            raise InputError(f"{overwritten} would be overwritten; choose another --output")
