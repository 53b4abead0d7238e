"""Find images in folders."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from nst_core.errors import InputError
from nst_core.images.formats import READABLE_SUFFIXES, UNREADABLE_SUFFIXES


def find_images(folder: Path) -> list[Path]:
    """Return the files under `folder` with the suffix of a readable format, sorted.

    Symbolic links are followed, but each folder is listed once, at its own place rather than a link's, and never from
    within itself. Hidden files are left out, since another program may be writing them. Raises `InputError` if there is
    no image or a folder cannot be listed.
    """
    found = _with_suffix(folder, READABLE_SUFFIXES)
    if not found:
        unread = unreadable_summary(unreadable_images(folder))
        why = f"; {unread}" if unread else f" (looked for {', '.join(sorted(READABLE_SUFFIXES))})"
        raise InputError(f"{folder}: no images found{why}")
    return found


def unreadable_images(folder: Path) -> list[Path]:
    """Return the image files that `find_images` leaves out because nst does not read their format."""
    return _with_suffix(folder, UNREADABLE_SUFFIXES)


def unreadable_summary(paths: Iterable[Path]) -> str:
    """Return a line such as "3 files were not read: 2 .dng, 1 .jxl"; empty for no files."""
    kinds = Counter(path.suffix.lower() for path in paths)
    if not kinds:
        return ""
    count = kinds.total()
    listed = ", ".join(
        f"{number} {suffix}" for suffix, number in sorted(kinds.items(), key=lambda kind: (-kind[1], kind))
    )
    return f"{count} {'file was' if count == 1 else 'files were'} not read: {listed}"


def _with_suffix(folder: Path, suffixes: Collection[str]) -> list[Path]:
    if not os.path.isdir(folder):  # noqa: PTH112
        raise InputError(f"{folder}: no such folder")
    return sorted(
        path
        for path in _files_below(folder)
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield every file, those below linked folders last."""
    seen: set[str] = set()
    starts = deque([folder])
    while starts:
        for here, folders, names in os.walk(starts.popleft(), onerror=_not_listed):
            real = os.path.realpath(here)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            yield from (Path(here, name) for name in names)
            for link in (Path(here, name) for name in sorted(folders)):
                if link.is_symlink() and not Path(real).is_relative_to(os.path.realpath(link)):
                    starts.append(link)


def _not_listed(error: OSError) -> None:
    """Raise `InputError` rather than leave out images silently."""
    if not isinstance(error, FileNotFoundError):  # a folder that was just removed has no images
        raise InputError(f"cannot list the folder {error.filename}: {error.strerror}") from error


def sample_photographs() -> list[Path]:
    """Return the photographs that ship with nst (see `photographs/SOURCES.md`); no network was trained on them."""
    return sorted((Path(__file__).parents[1] / "photographs").glob("*.jpg"))
