"""Train visitors' styles: add each style image to a gallery as one more style, and publish it.

The commands `nst train --add` and `nst export` do the work, each in its own process. Every training has a folder beside
the gallery, so that a restarted page continues: the trainer resumes where it stopped (`--resume`). A trainer whose
page was killed is told to stop, and holds a lock until it has ended.
"""

from __future__ import annotations

import asyncio
import fcntl
import filecmp
import io
import json
import logging
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from nst_apps.web.server import Server
from nst_core.console import duration
from nst_core.errors import InputError, MissingExtra, NstError
from nst_core.events import EventReader
from nst_core.files import atomic_write
from nst_core.images import ImageData, open_image, save_image

MAX_STYLE_SIDE_PIXELS = 2048
"""Longer side of a stored style image, in pixels; the trainer shrinks it further."""

MAX_WAITING, MAX_KEPT = 20, 60
"""Maximum waiting styles of all visitors, and maximum stored ones, failures included; the oldest are removed."""

SERVER_TIMEOUT_SECONDS = 600.0
"""How long a trained style waits for the server to answer, while other styles wait."""

STOP_GRACE_SECONDS = 60.0
"""Time for a command to end after SIGTERM; the trainer saves its state."""

POLL_SECONDS = 0.2
"""Time between two checks of a command's progress."""

RECORD, EVENTS = "training.json", "events.jsonl"
"""Files in a style's folder: its record, and the progress events of its command."""

log = logging.getLogger(__name__)


class CommandFailed(NstError):
    """A command failed; the message is the command's own."""


@dataclass
class StyleTraining:
    """A style to train: its name, its visitor's key (`owner`), and its progress.

    `trained` are the finished and all steps, or with `--minutes` seconds (`unit`). `time_left` is the trainer's
    estimate, such as "1:20". `base` is the version of the gallery to which the style is added. If the gallery has the
    style already (`in_gallery`), only publishing is left.
    """

    name: str
    owner: str
    submitted: float = field(default_factory=time.time)
    status: str = "waiting"
    error: str = ""
    trained: tuple[int, int] = (0, 0)
    unit: str = "steps"
    time_left: str = ""
    base: str = ""
    in_gallery: bool = False

    @property
    def pending(self) -> bool:
        """Whether the style is unfinished."""
        return self.status not in ("done", "failed")


class StyleTrainer:
    """Trains styles in the order of submission, into a gallery: a checkpoint of many styles."""

    def __init__(
        self,
        server: Server,
        gallery: Path,
        repository: Path,
        url: str,
        train: str,
        max_pixels: int,
        on_message: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Load the trainings of an earlier run. `on_message` gets the reason when a training fails.

        Raises `InputError` for missing files, and `MissingExtra`.
        """
        if not gallery.is_file():
            raise InputError(f"--gallery {gallery}: no such checkpoint; train one with nst train --style IMAGE")
        if not repository.is_dir():
            raise InputError(f"--repository {repository}: no such folder; give the one that nst serve serves")
        for module in ("torch", "onnxscript"):
            if not find_spec(module):
                raise MissingExtra("export", module)
        self.server, self.gallery, self.repository, self.url = server, gallery, repository, url
        self.train_options, self.max_pixels, self.on_message = _options(train), max_pixels, on_message
        self.folder = gallery.with_suffix(".training")
        _rename_making(gallery, self.folder)
        self.trainings = self._found()
        self._changed = asyncio.Event()

    async def submit(self, owner: str, name: str, data: bytes) -> StyleTraining:
        """Submit a style image, given as its file's bytes. Raises `InputError`, `ImageError`, `WriteError`."""
        name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
        if not name:
            raise InputError("the style has no name; give it letters or digits")
        if not self.server.up.is_set():
            raise InputError("the server does not answer; try again later")
        taken = {style.name for style in self.server.styles} | self.trainings.keys()
        if name in taken:
            raise InputError(f"a style {name} exists already; choose another name")
        pending = [training for training in self.trainings.values() if training.pending]
        if any(training.owner == owner for training in pending):
            raise InputError("one of your styles is in training; wait until it is done")
        if len(pending) >= MAX_WAITING:
            raise InputError(f"{MAX_WAITING} styles are waiting, which is the maximum; try again later")
        settled = [training for training in self.trainings.values() if not training.pending]
        too_many = max(0, len(self.trainings) + 1 - MAX_KEPT)
        for old in sorted(settled, key=lambda training: training.submitted)[:too_many]:
            self.discard(old)
        training = StyleTraining(name, owner)
        self.trainings[name] = training  # before reading and writing the image, which takes a while
        try:
            await asyncio.to_thread(self._keep_style_image, training, data)
            self._keep(training)
        except BaseException:
            self.discard(training)
            raise
        self._changed.set()
        return training

    def retry(self, training: StyleTraining) -> None:
        """Retry a failed training from where it stopped. Raises `WriteError`."""
        before = training.status, training.error
        training.status, training.error = "waiting", ""
        try:
            self._keep(training)
        except NstError:
            training.status, training.error = before
            raise
        self._changed.set()

    def discard(self, training: StyleTraining) -> None:
        """Remove a training. Raises `InputError` while it runs."""
        if training.status in ("training", "publishing"):
            raise InputError(f"{training.name} is in training and cannot be cancelled; wait until it is done")
        del self.trainings[training.name]
        shutil.rmtree(self.folder / training.name, ignore_errors=True)

    async def run(self) -> None:
        """Train and publish waiting styles, forever; when cancelled, the trainer saves its state and ends."""
        while True:
            self._changed.clear()
            pending = [
                training
                for training in self.trainings.values()
                if training.pending and (self._own(training) / RECORD).exists()
            ]
            if not pending:
                await self._changed.wait()
                continue
            training = min(pending, key=lambda training: training.submitted)
            try:
                await self._followed(training, self._train_and_publish(training))
            except (NstError, OSError) as error:
                training.error = " ".join(str(error).split())
            except Exception as error:  # one style must not stop the others
                log.exception("training the style %s failed", training.name)
                training.error = f"nst web has a defect ({type(error).__name__}); see its terminal"
            if training.status != "done":
                training.status = "failed"
                self.on_message(f"training the style {training.name} failed: {training.error}")
            with suppress(NstError):  # for example a full disk; the next start tries again from the last record
                self._keep(training)

    async def _train_and_publish(self, training: StyleTraining) -> None:
        own = self._own(training)
        with (own / "lock").open("wb") as lock:
            await _locked(lock)
            if not training.in_gallery:
                await self._train(training, lock)
            training.status = "publishing"
            self._keep(training)
            try:
                async with asyncio.timeout(SERVER_TIMEOUT_SECONDS):
                    await self.server.up.wait()
            except TimeoutError:
                raise CommandFailed(
                    "the style is trained, but the server does not answer; try again to publish it"
                ) from None
            tiled = any(style.model == self.gallery.stem and style.tiles for style in self.server.styles)
            more = ["--tiled"] if tiled else []
            more += [] if self.url.startswith("local:") else ["--load", self.url]
            await run_command(own, lock, "nst_export", self.gallery, "--repository", self.repository, *more)
        await self.server.look()
        training.status = "done"

    async def _train(self, training: StyleTraining, lock: BinaryIO) -> None:
        """Train the gallery with one more style, and replace the gallery."""
        own = self._own(training)
        new, begun = own / "gallery.pth", own / "gallery.pth.resume"
        if not (new.exists() and filecmp.cmp(new, self.gallery, shallow=False)):
            base = _version(self.gallery)
            if training.base not in ("", base):  # another style was added meanwhile, which the unfinished one lacks
                for old in (new, begun):
                    old.unlink(missing_ok=True)
            training.status, training.base = "training", base
            self._keep(training)
            if not new.exists():
                more = [*self.train_options, *(["--resume"] if begun.exists() else [])]
                command = ["--add", own / f"{training.name}.png", "--to", self.gallery, "--output", new, *more]
                await run_command(own, lock, "nst_trainer", *command)
            if _version(self.gallery) != base:
                raise CommandFailed(f"{self.gallery.name} changed during the training; try again")
            with atomic_write(self.gallery) as beside:
                shutil.copyfile(new, beside)
        training.in_gallery = True
        self._keep(training)
        new.unlink()

    async def _followed(self, training: StyleTraining, work: Awaitable[None]) -> None:
        """Await the work while reading the trainer's progress, even of a trainer that an earlier page started."""
        following = asyncio.create_task(self._follow(training))
        try:
            await work
        finally:
            following.cancel()

    async def _follow(self, training: StyleTraining) -> None:
        reader = EventReader(self._own(training) / EVENTS)
        while True:
            for event in reader.read():
                if event["event"] == "progress" and event["task"] == "training":
                    training.trained = event["done"], event["total"]
                    training.unit, left = event["unit"], event["seconds_left"]
                    training.time_left = "" if left is None else duration(left)
            await asyncio.sleep(POLL_SECONDS)

    def _keep_style_image(self, training: StyleTraining, data: bytes) -> None:
        image = open_image(io.BytesIO(data), max_pixels=self.max_pixels, max_side=MAX_STYLE_SIDE_PIXELS)
        save_image(ImageData(image.pixels), self._own(training) / f"{training.name}.png")

    def _keep(self, training: StyleTraining) -> None:
        with atomic_write(self._own(training) / RECORD, private=True) as beside:
            beside.write_text(json.dumps(asdict(training)))

    def _own(self, training: StyleTraining) -> Path:
        return self.folder / training.name

    def _found(self) -> dict[str, StyleTraining]:
        """Load the trainings on disk; remove finished ones and those that were never completely submitted."""
        found = {}
        for folder in sorted(self.folder.glob("*/")):
            try:
                _convert_making(folder)
                training = StyleTraining(**json.loads((folder / RECORD).read_text()))
            except (OSError, ValueError, TypeError):
                training = None
            if training is None or training.status == "done":
                shutil.rmtree(folder, ignore_errors=True)
                continue
            training.in_gallery |= training.status == "publishing" and not (folder / "gallery.pth").exists()
            training.trained = (0, 0)
            found[training.name] = training
        return found


def _convert_making(folder: Path) -> None:
    """Convert `making.json` of earlier versions, with other names. Raises `OSError`, `ValueError`."""
    file = folder / "making.json"
    if not file.exists():
        return
    names = {"ordered": "submitted", "learned": "trained", "left": "time_left", "learned_whole": "in_gallery"}
    document = {names.get(name, name): value for name, value in json.loads(file.read_text()).items()}
    with atomic_write(folder / RECORD, private=True) as beside:
        beside.write_text(json.dumps(document))
    file.unlink()


def _rename_making(gallery: Path, folder: Path) -> None:
    """Rename the folder of earlier versions, `<gallery>.making`."""
    earlier = gallery.with_suffix(".making")
    if earlier.is_dir() and not folder.exists():
        earlier.rename(folder)


def _options(train: str) -> list[str]:
    try:
        return shlex.split(train)
    except ValueError as error:
        raise InputError(f"--train {train!r} cannot be split into options ({error}); check its quotes") from None


async def _locked(lock: BinaryIO) -> None:
    """Wait for the lock, which a command that was started with it holds until it ends."""
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            await asyncio.sleep(1.0)


async def run_command(folder: Path, lock: BinaryIO, module: str, *arguments: object) -> None:
    """Run a command for the style in a folder. Raises `CommandFailed` with the command's message."""
    output, events = folder / "log", folder / EVENTS
    events.unlink(missing_ok=True)
    child = (sys.executable, "-m", "nst_apps.web.child", str(os.getpid()))
    command = (*child, module, *map(str, arguments), "--progress-json", str(events))
    with output.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=file,
            stderr=file,
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(lock.fileno(),),
            start_new_session=True,
        )
    try:
        status = await process.wait()
    except asyncio.CancelledError:
        await _ended(process)
        raise
    if status:
        raise CommandFailed(_why_it_failed(events, output))


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Stop a command, and wait until it has ended."""
    with suppress(ProcessLookupError):
        process.terminate()
        try:
            async with asyncio.timeout(STOP_GRACE_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _version(file: Path) -> str:
    """Return a text that changes when a file is replaced or written."""
    found = file.stat()
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns}"


def _why_it_failed(events: Path, output: Path) -> str:
    """Return the message of the `failed` event; without one, as after a kill, the last line of output."""
    messages = [event.get("message") for event in EventReader(events).read() if event["event"] == "failed"]
    if messages and messages[-1]:
        return str(messages[-1])
    lines = [line.strip() for line in output.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "the command ended without a message"
