"""Many pictures in one run: which they are, where each goes, which are painted already, and several at a time.

A painting says in its EXIF data how it was made (`StylizeOptions.record`). So a run that is started again knows what is
finished, and takes no picture of another style for it.
"""

from __future__ import annotations

import errno
import glob
import io
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import BinaryIO

from nst_client.base_client import OnTile
from nst_client.client import StyleClient
from nst_client.errors import Unavailable, UnknownStyle, Unreachable, Untrusted
from nst_client.styles import resolve_style_weights
from nst_core.errors import ImageError, InputError, NstError, WriteError
from nst_core.images import (
    DEFAULT_MAX_PIXELS,
    READABLE_SUFFIXES,
    UNREADABLE_SUFFIXES,
    WRITABLE_FORMATS,
    ImageData,
    Pixels,
    blend,
    check_size,
    encode_image,
    find_images,
    image_format,
    keep_colors,
    open_image,
    process_of_file,
    save_image,
    unreadable_images,
)

STDIO = Path("-")
"""The standard input as a photograph, the standard output as a target."""

GRACE_SECONDS = 5.0
"""Seconds that pictures have to end when the run is stopped: enough to write a file that is begun."""

NEXT_TOO = (Unreachable, Unavailable, Untrusted, UnknownStyle, WriteError)
"""Errors that the next picture would meet as well, except for a file that cannot be written because of its own name."""

OWN_NAME = frozenset({errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EILSEQ, errno.EINVAL})
"""What is wrong with one file's name, and not with the disk or the folder."""

LOSSY = frozenset({".jfif", ".jpe", ".mpo", ".heic", ".heif", ".hif", ".avif"})
"""Photographs in formats that are not written: JPEG is, as these lose some of what the camera saw, and are small."""


@dataclass(frozen=True)
class Job:
    """A photograph and the file that its painting becomes; `named` if the user gave that file's own name."""

    photo: Path
    target: Path
    named: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a painting of this size (pixels) after so long in the server, or why there is none.

    `skipped`: it was there already. `tried` is False where an error before left no hope.
    """

    job: Job
    width: int = 0
    height: int = 0
    milliseconds: float = 0.0
    skipped: bool = False
    error: NstError | None = None
    tried: bool = True


@dataclass(frozen=True)
class StylizeOptions:
    """How every photograph of a run is painted: a mix of styles and what `nst stylize` says of each option."""

    style: Mapping[str, float]
    strength: float = 1.0
    preserve_color: bool = False
    max_side: int | None = None
    quality: int = 92
    max_pixels: int = DEFAULT_MAX_PIXELS

    @property
    def record(self) -> str:
        """The command that paints like this, in ASCII, without the options that have no part in it."""
        mix = ",".join(f"{name}:{weight:g}" for name, weight in self.style.items())
        words = ["nst", "stylize", "--style", mix, "--quality", str(self.quality)]
        words += ["--strength", f"{self.strength:g}"] if self.strength < 1 else []
        words += ["--preserve-color"] if self.preserve_color else []
        words += ["--max-side", str(self.max_side)] if self.max_side else []
        return shlex.join(words).encode("ascii", "backslashreplace").decode()

    def check(self, client: StyleClient) -> None:
        """Raise what would keep every picture from being painted: `UnknownStyle`, or `InputError` for the mix."""
        offered = {style.name: style for style in client.styles()}
        if missing := [name for name in self.style if name not in offered]:
            raise UnknownStyle(f"{client.url} has no style {missing[0]!r}; it has: {', '.join(offered) or 'none'}")
        resolve_style_weights([offered[name] for name in self.style], list(self.style.values()))

    def opened(self, source: Path | BinaryIO) -> ImageData:
        """The photograph as it goes to the model. Raises `ImageError`."""
        return open_image(source, max_pixels=self.max_pixels, max_side=self.max_side)

    def painting(
        self, picture: ImageData, client: StyleClient, on_tile: OnTile | None = None
    ) -> tuple[ImageData, float]:
        """An opened photograph's painting, and the milliseconds in the server. Raises what `stylize` raises."""
        started = time.perf_counter()
        painted = client.stylize(picture.pixels, self.style, on_tile=on_tile)
        milliseconds = 1000 * (time.perf_counter() - started)
        painted = postprocess(picture.pixels, painted, self.strength, self.preserve_color)
        return replace(picture, pixels=painted, metadata=replace(picture.metadata, process=self.record)), milliseconds

    def paint(self, job: Job, client: StyleClient, kind: str | None = None, on_tile: OnTile | None = None) -> Outcome:
        """Read, paint and write one picture; `kind` is Pillow's name of the format on the standard output.

        Raises `ImageError`, `InputError` for an image that its format cannot hold, `WriteError`, and what
        `StyleClient.stylize` raises.
        """
        source = _stdin(self.max_pixels) if job.photo == STDIO else job.photo
        picture = self.opened(source)
        if job.target == STDIO:
            kind = kind or (picture.metadata.kind if picture.metadata.kind in WRITABLE_FORMATS.values() else "PNG")
        else:
            kind = image_format(job.target)
        check_size(picture.width, picture.height, kind)  # before the server works for nothing
        result, milliseconds = self.painting(picture, client, on_tile)
        if job.target == STDIO:
            _picture_to_stdout(encode_image(result, kind, quality=self.quality))
        else:
            save_image(result, job.target, quality=self.quality)
        return Outcome(job, picture.width, picture.height, milliseconds)


def postprocess(photo: Pixels, painted: Pixels, strength: float, preserve_color: bool) -> Pixels:
    """What is shown of a photograph and its painting, both `uint8 [H, W, 3]`: its colours or not, and how strong."""
    if preserve_color:
        painted = keep_colors(photo, painted)
    return blend(photo, painted, strength) if strength < 1 else painted


def jobs_of(photos: Sequence[str], output: Path, suffix: str | None = None) -> list[Job]:
    """What is to be painted, and where it goes.

    A photograph is a file, a folder (its tree is kept below `output`), a pattern of files with `*`, `?`, `[...]` or
    `**` (all come into one folder), or `-`. `output` is a file for one picture, else a folder, or `-`. A painting in
    a folder has the format of `suffix` or its photograph's own; where that cannot be written, JPEG for HEIC, AVIF and
    other names of JPEG, else PNG.
    Raises `InputError` where nothing is found, two pictures would become one, or a photograph would be overwritten.
    """
    found = list(dict.fromkeys(one for given in photos for one in _found(given, output)))
    if not found:
        raise InputError(f"no pictures but those in {output}")
    alone = len(photos) == 1 and len(found) == 1 and not _is_folder(photos[0])
    if output == STDIO or STDIO in (photo for photo, _ in found):
        if not alone:
            raise InputError("- is one picture: give it alone")
        if _is_folder(output) or (output != STDIO and not output.suffix):
            raise InputError(
                f"a picture from the standard input has no name for the folder {output}: name a file, or -"
            )
    if alone and (output == STDIO or (output.suffix and not _is_folder(output))):
        jobs = [_named(found[0][0], output, suffix)]
    elif not _is_folder(output) and (_is_there(output) or output.suffix.lower() in WRITABLE_FORMATS):
        raise InputError(f"{output} is a file; several pictures need a folder")
    else:
        jobs = [Job(photo, output / below.with_suffix(suffix or own_suffix(below.suffix))) for photo, below in found]
    _check_targets(jobs)
    return jobs


def standing(job: Job, recipe: StylizeOptions) -> Outcome | None:
    """What there is to say of a job before it is tried; None where it is to be painted.

    A file that is painted by this recipe is finished. Another one is not ours to replace, unless the user named it.
    """
    if job.named or not _is_there(job.target):
        return None
    if process_of_file(job.target) == recipe.record:
        return Outcome(job, skipped=True)
    error = InputError(f"{job.target} is there already, and not painted like this; --overwrite replaces it")
    return Outcome(job, error=error)


def painted(
    jobs: Sequence[Job],
    paint: Callable[[Job, StyleClient], Outcome],
    connect: Callable[[], StyleClient],
    workers: int = 1,
) -> Generator[Outcome, None, None]:
    """Paint by `workers` threads with a client each; outcomes come in the order of the jobs.

    While one waits for the server, the others read and write pictures. An error that the next picture would meet as
    well ends the run: the jobs after it are not tried. A caller that stops early leaves no thread that begins a job.
    """
    todo: SimpleQueue[tuple[Job, Future[Outcome]]] = SimpleQueue()
    futures = [Future[Outcome]() for _ in jobs]
    for one in zip(jobs, futures, strict=True):
        todo.put(one)
    stopped = threading.Event()
    hopeless: list[NstError] = []

    def outcome(job: Job, client: StyleClient) -> Outcome:
        if hopeless:
            return Outcome(job, error=hopeless[0], tried=False)
        try:
            return paint(job, client)
        except NstError as error:
            if is_hopeless(error):
                hopeless.append(error)
            return Outcome(job, error=error)
        except MemoryError:
            why = f"{job.photo}: there is not enough memory for it; --max-side paints it smaller"
            return Outcome(job, error=InputError(why))

    def work(client: StyleClient) -> None:
        while not stopped.is_set():
            try:
                job, future = todo.get_nowait()
            except Empty:
                return
            try:
                future.set_result(outcome(job, client))
            except BaseException as error:
                future.set_exception(error)

    with ExitStack() as clients:
        if workers == 1 or len(jobs) == 1:
            client = clients.enter_context(connect())
            yield from (outcome(job, client) for job in jobs)
            return
        own = [clients.enter_context(connect()) for _ in range(min(workers, len(jobs)))]
        # Daemons: one that waits for a server must not keep a process that was told to stop.
        threads = [threading.Thread(target=work, args=(client,), daemon=True) for client in own]
        for thread in threads:
            thread.start()
        try:
            yield from (future.result() for future in futures)
        finally:
            stopped.set()
            deadline = time.monotonic() + GRACE_SECONDS
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            if any(thread.is_alive() for thread in threads):
                clients.pop_all()  # a client is closed by nobody but its own thread


def is_hopeless(error: NstError) -> bool:
    """Whether the next picture would meet the error as well."""
    own = isinstance(error, WriteError) and isinstance(error.__cause__, OSError) and error.__cause__.errno in OWN_NAME
    return isinstance(error, NEXT_TOO) and not own


def unread_of(photos: Sequence[str], output: Path) -> list[Path]:
    """Images in the folders and patterns of `jobs_of` that nst does not read, such as a camera's raw files."""
    found: dict[Path, None] = {}
    for given in photos:
        path = Path(given)
        if _is_folder(path):
            found |= dict.fromkeys(_outside(output, path, unreadable_images(path)))
        elif _is_pattern(given):
            found |= dict.fromkeys(_matches(given, UNREADABLE_SUFFIXES))
    return list(found)


def _found(given: str, output: Path) -> list[tuple[Path, Path]]:
    """The pictures that one argument means, each with its path below the output folder."""
    path = Path(given)
    if _is_folder(path):
        return [(photo, photo.relative_to(path)) for photo in _outside(output, path, find_images(path))]
    if _is_pattern(given):
        matches = _matches(given, READABLE_SUFFIXES)
        if not matches:
            raise InputError(f"no picture matches {given}")
        return [(photo, Path(photo.name)) for photo in matches]
    return [(path, Path(path.name))]


def _outside(output: Path, folder: Path, pictures: list[Path]) -> list[Path]:
    """The pictures of a folder without those in the output folder, if that is inside it: they are paintings."""
    if output == STDIO or os.path.realpath(output) == os.path.realpath(folder):
        return pictures
    paintings = f"{os.path.realpath(output)}/"
    return [picture for picture in pictures if not os.path.realpath(picture).startswith(paintings)]


def _is_pattern(given: str) -> bool:
    return glob.has_magic(given) and not _is_there(given)


def _matches(pattern: str, suffixes: Collection[str]) -> list[Path]:
    """The files that a pattern means, sorted, of those that have one of the suffixes."""
    names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  of Path it takes no absolute patterns
    return [path for path in map(Path, names) if path.suffix.lower() in suffixes and path.is_file()]


def _is_folder(path: Path | str) -> bool:
    """As `Path.is_dir`, which raises for a name that is too long."""
    return os.path.isdir(path)  # noqa: PTH112


def _is_there(path: Path | str) -> bool:
    """As `Path.exists`, which raises for a name that is too long."""
    return os.path.exists(path)  # noqa: PTH110


def _named(photo: Path, output: Path, suffix: str | None) -> Job:
    kind = None if output == STDIO else image_format(output)
    if kind and suffix and kind != WRITABLE_FORMATS[suffix]:
        raise InputError(f"{output} and --format {suffix[1:]} disagree: give one of them")
    return Job(photo, output, named=True)


def _check_targets(jobs: Sequence[Job]) -> None:
    """Compare the files themselves: a target may be a link, and the file that it names is replaced."""
    seen: dict[str, Job] = {}
    photos = {os.path.realpath(job.photo) for job in jobs if job.photo != STDIO}
    for job in jobs:
        if job.target == STDIO:
            continue
        target = os.path.realpath(job.target)
        if (other := seen.setdefault(target, job)) is not job:
            raise InputError(
                f"{other.photo} and {job.photo} would both become {job.target}: several pictures would become one; "
                "give them different names, or paint them into different folders"
            )
        if target in photos:
            what = job.photo if target == os.path.realpath(job.photo) else f"{target}, a picture to paint,"
            raise InputError(f"{what} would be overwritten: choose another folder than its own")


def own_suffix(suffix: str) -> str:
    """Of a painting whose photograph has this one: the same, or JPEG's or PNG's where that cannot be written."""
    if suffix.lower() in WRITABLE_FORMATS:
        return suffix
    return ".jpg" if suffix.lower() in LOSSY else ".png"


def _stdin(max_pixels: int) -> BinaryIO:
    """The whole standard input, if it is not more than the largest picture could need."""
    if sys.stdin is None:  # closed by whoever started us
        raise ImageError("- is a picture from the standard input, and that is closed: give it one by < or |")
    if sys.stdin.isatty():
        raise ImageError("- is a picture from the standard input, and that is the terminal: give it one by < or |")
    most = 8 * max_pixels + 2**26  # four channels of 16 bits, not compressed, and metadata
    try:
        data = sys.stdin.buffer.read(most + 1)
    except OSError as error:
        raise ImageError(f"cannot read the standard input: {error.strerror or error}") from error
    if not data:
        raise ImageError("the standard input is empty: give it a picture by < or |")
    if len(data) > most:
        raise ImageError(f"the standard input is longer than {most / 1e6:.0f} MB: no picture of {max_pixels} pixels")
    return io.BytesIO(data)


def _picture_to_stdout(data: bytes) -> None:
    if sys.stdout is not None and sys.stdout.isatty():
        raise InputError("-o - writes the picture to the standard output, and that is the terminal: use > or |")
    to_stdout(data)


def to_stdout(data: bytes) -> None:
    """Write all of it now. Raises `WriteError` for an output that is closed or on a full disk."""
    if sys.stdout is None:  # closed by whoever started us
        raise WriteError("cannot write to the standard output: it is closed")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise WriteError(f"cannot write to the standard output: {error.strerror or error}") from error
