"""Styles that visitors have made: a painting is learned as one more style of a gallery, and published.

The work is done by the commands `nst train --add` and `nst export`, each in a process of its own. What is to be done
stands on disk, a folder each beside the gallery, so that a program that is started again goes on with it: the trainer
where it stopped (`--resume`). A trainer whose program was killed is told to stop, and holds a lock until it has ended.
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
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from nst_client.web.server import Server
from nst_core.console import duration, say
from nst_core.errors import InputError, MissingExtra, NstError
from nst_core.events import EventReader
from nst_core.files import atomic_write
from nst_core.images import ImageData, open_image, save_image

LARGEST = 2048
"""Longer side of a painting that is kept to learn from, pixels; the trainer shrinks it further."""

WAITING, KEPT = 20, 60
"""Styles that may wait to be made, everybody's together, and those that are kept with what failed: the oldest go."""

PATIENCE = 600.0
"""Seconds for which a learned style waits for a server that does not answer, and keeps the others waiting."""

GRACE = 60.0
"""Seconds in which a command that is told to stop must end; the trainer writes how far it is."""

FOLLOWED = 0.2
"""Seconds between two looks at a command's progress."""

EVENTS = "events.jsonl"
"""The file in a style's folder that its command appends its progress to."""

log = logging.getLogger("nst_client")


class Failed(NstError):
    """A command did not do what it should; the message is its own last line."""


@dataclass
class Making:
    """A style to be made: the visitor's key, its name, and how far it is. `learned` are steps, those done and all.

    With `--minutes` their `unit` is "seconds". `left` is the trainer's estimate of the time that is left, "1:20".
    `base` is the gallery that the style is added to, and `learned_whole` that the gallery has it now, so that what is
    left is to publish it.
    """

    name: str
    owner: str
    ordered: float = field(default_factory=time.time)
    status: str = "waiting"
    error: str = ""
    learned: tuple[int, int] = (0, 0)
    unit: str = "steps"
    left: str = ""
    base: str = ""
    learned_whole: bool = False

    @property
    def pending(self) -> bool:
        """It is still to be done."""
        return self.status not in ("done", "failed")


class Maker:
    """Makes one style after another, in a gallery that is a checkpoint of many styles."""

    def __init__(self, server: Server, gallery: Path, repository: Path, url: str, train: str, max_pixels: int) -> None:
        """Find what an earlier run has left. Raises `InputError` for files that are not there, `MissingExtra`."""
        if not gallery.is_file():
            raise InputError(f"--gallery {gallery}: no such checkpoint; train one with nst-train --style PICTURE")
        if not repository.is_dir():
            raise InputError(f"--repository {repository}: no such folder; it is what nst-serve serves")
        for module in ("torch", "onnxscript"):
            if not find_spec(module):
                raise MissingExtra("export", module)
        self.server, self.gallery, self.repository, self.url = server, gallery, repository, url
        self.train, self.max_pixels = _options(train), max_pixels
        self.folder = gallery.with_suffix(".making")
        self.makings = self._found()
        self._news = asyncio.Event()

    async def order(self, owner: str, name: str, data: bytes) -> Making:
        """Keep a painting, the bytes of its file, to be learned. Raises `InputError`, `ImageError`, `WriteError`."""
        name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
        if not name:
            raise InputError("give the style a name of letters or digits")
        if not self.server.up.is_set():
            raise InputError("the painter does not answer just now, and knows which names are taken: try again later")
        taken = {style.name for style in self.server.styles} | self.makings.keys()
        if name in taken:
            raise InputError(f"there is a style {name} already: choose another name")
        pending = [making for making in self.makings.values() if making.pending]
        if any(making.owner == owner for making in pending):
            raise InputError("one of your styles is being made: wait until it is done")
        if len(pending) >= WAITING:
            raise InputError(f"{WAITING} styles are waiting to be made: try again later")
        settled = [making for making in self.makings.values() if not making.pending]
        for old in sorted(settled, key=lambda making: making.ordered)[: max(0, len(self.makings) + 1 - KEPT)]:
            self.forget(old)
        making = Making(name, owner)
        self.makings[name] = making  # now, since a picture takes a while to be read and written
        try:
            await asyncio.to_thread(self._keep_picture, making, data)
            self._keep(making)
        except BaseException:
            self.forget(making)
            raise
        self._news.set()
        return making

    def again(self, making: Making) -> None:
        """Try once more what failed, from where it got to. Raises `WriteError`."""
        before = making.status, making.error
        making.status, making.error = "waiting", ""
        try:
            self._keep(making)
        except NstError:
            making.status, making.error = before
            raise
        self._news.set()

    def forget(self, making: Making) -> None:
        """Give up a style that is not being made now, or is done."""
        if making.status in ("training", "publishing"):
            raise InputError(f"{making.name} is being made now: it cannot be taken back")
        del self.makings[making.name]
        shutil.rmtree(self.folder / making.name, ignore_errors=True)

    async def run(self) -> None:
        """Make what is to be made, for ever; cancelled, the trainer writes how far it is, and ends."""
        while True:
            self._news.clear()
            pending = [
                making
                for making in self.makings.values()
                if making.pending and (self._own(making) / "making.json").exists()
            ]
            if not pending:
                await self._news.wait()
                continue
            making = min(pending, key=lambda making: making.ordered)
            try:
                await self._followed(making, self._make(making))
            except (NstError, OSError) as error:
                making.error = " ".join(str(error).split())
            except Exception as error:  # one style must not keep the others from being made
                log.exception("the style %s", making.name)
                making.error = f"a fault of nst web ({type(error).__name__}): its terminal says more"
            if making.status != "done":
                making.status = "failed"
                say(f"the style {making.name} is not made: {making.error}")
            with suppress(NstError):  # a full disk: what stands there makes the next start try once more
                self._keep(making)

    async def _make(self, making: Making) -> None:
        own = self._own(making)
        with (own / "lock").open("wb") as lock:
            await _locked(lock)
            if not making.learned_whole:
                await self._learn(making, lock)
            making.status = "publishing"
            self._keep(making)
            try:
                async with asyncio.timeout(PATIENCE):
                    await self.server.up.wait()
            except TimeoutError:
                raise Failed("it is learned, but the painter has not answered: try again to publish it") from None
            tiled = any(style.model == self.gallery.stem and style.tiles for style in self.server.styles)
            more = ["--tiled"] if tiled else []
            more += [] if self.url.startswith("local:") else ["--load", self.url]
            await self._run(making, lock, "nst_export", self.gallery, "--repository", self.repository, *more)
        await self.server.look()
        making.status = "done"

    async def _learn(self, making: Making, lock: BinaryIO) -> None:
        """Train a gallery with one style more, and put it in the place of the gallery."""
        own = self._own(making)
        new, begun = own / "gallery.pth", own / "gallery.pth.resume"
        if not (new.exists() and filecmp.cmp(new, self.gallery, shallow=False)):
            base = _version(self.gallery)
            if making.base not in ("", base):  # another style was added meanwhile, which the one begun does not have
                for old in (new, begun):
                    old.unlink(missing_ok=True)
            making.status, making.base = "training", base
            self._keep(making)
            if not new.exists():
                more = [*self.train, *(["--resume"] if begun.exists() else [])]
                command = ["--add", own / f"{making.name}.png", "--to", self.gallery, "--output", new, *more]
                await self._run(making, lock, "nst_trainer", *command)
            if _version(self.gallery) != base:
                raise Failed(f"{self.gallery.name} was changed while this was learned: try again")
            with atomic_write(self.gallery) as beside:
                shutil.copyfile(new, beside)
        making.learned_whole = True
        self._keep(making)
        new.unlink()

    async def _run(self, making: Making, lock: BinaryIO, module: str, *arguments: object) -> None:
        """Run a command to its end. Raises `Failed` with its own message."""
        output, events = self._own(making) / "log", self._own(making) / EVENTS
        events.unlink(missing_ok=True)
        command = (module, *map(str, arguments), "--progress-json", str(events))
        with output.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "nst_client.web.child", str(os.getpid()), *command),
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
            raise Failed(_why_it_failed(events, output))

    async def _followed(self, making: Making, work: Awaitable[None]) -> None:
        """Do the work, and read the trainer's progress meanwhile, also of one that another program has started."""
        following = asyncio.create_task(self._follow(making))
        try:
            await work
        finally:
            following.cancel()

    async def _follow(self, making: Making) -> None:
        reader = EventReader(self._own(making) / EVENTS)
        while True:
            for event in reader.read():
                if event["event"] == "progress" and event["task"] == "training":
                    making.learned = event["done"], event["total"]
                    making.unit, left = event["unit"], event["seconds_left"]
                    making.left = "" if left is None else duration(left)
            await asyncio.sleep(FOLLOWED)

    def _keep_picture(self, making: Making, data: bytes) -> None:
        picture = open_image(io.BytesIO(data), max_pixels=self.max_pixels, max_side=LARGEST)
        save_image(ImageData(picture.pixels), self._own(making) / f"{making.name}.png")

    def _keep(self, making: Making) -> None:
        with atomic_write(self._own(making) / "making.json", private=True) as beside:
            beside.write_text(json.dumps(asdict(making)))

    def _own(self, making: Making) -> Path:
        return self.folder / making.name

    def _found(self) -> dict[str, Making]:
        """What stands on disk; what is done need not be told twice, and what was never ordered is nothing."""
        found = {}
        for folder in sorted(self.folder.glob("*/")):
            try:
                making = Making(**json.loads((folder / "making.json").read_text()))
            except (OSError, ValueError, TypeError):
                making = None
            if making is None or making.status == "done":
                shutil.rmtree(folder, ignore_errors=True)
                continue
            making.learned_whole |= making.status == "publishing" and not (folder / "gallery.pth").exists()
            making.learned = (0, 0)
            found[making.name] = making
        return found


def _options(train: str) -> list[str]:
    try:
        return shlex.split(train)
    except ValueError as error:
        raise InputError(f"--train {train!r} are no options of nst train: {error}") from None


async def _locked(lock: BinaryIO) -> None:
    """Hold the lock, which whoever was started with it holds until it ends."""
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            await asyncio.sleep(1.0)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Tell a command to stop, and see that it does."""
    with suppress(ProcessLookupError):
        process.terminate()
        try:
            async with asyncio.timeout(GRACE):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _version(file: Path) -> str:
    """What differs when a file is replaced or written."""
    found = file.stat()
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns}"


def _why_it_failed(events: Path, output: Path) -> str:
    """The message of the `failed` event; without one, of a command that was killed for instance, its last line."""
    messages = [event.get("message") for event in EventReader(events).read() if event["event"] == "failed"]
    if messages and messages[-1]:
        return str(messages[-1])
    lines = [line.strip() for line in output.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "it ended without a message"
