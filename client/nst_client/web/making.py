"""Styles that visitors have made: a painting is learned as one more style of a gallery, and published.

The work is done by the commands `nst train --add` and `nst export`, each in a process of its own. What is to be done
stands on disk, a folder each beside the gallery, so that a program that is started again goes on with it: the trainer
where it stopped (`--resume`). A trainer that outlived the program, which was killed, holds a lock; it is waited for.
"""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import re
import shlex
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from nst_client.web.server import Server
from nst_core.console import say
from nst_core.errors import InputError, MissingExtra, NstError
from nst_core.files import written_whole
from nst_core.images import Picture, open_picture, save_picture

LARGEST = 2048
"""Longer side of a painting that is kept to learn from, pixels; the trainer shrinks it further."""

WAITING = 20
"""Styles that may wait to be made, everybody's together."""

FOLLOWED = 0.2
"""Seconds between two looks at what a command says."""

_PROGRESS = re.compile(r"training (\d+)/(\d+)  (\S+) left")


class Failed(NstError):
    """A command did not do what it should; the message is its own last line."""


@dataclass
class Making:
    """A style to be made: the visitor's key, its name, and how far it is. `learned` are iterations, those done and all.

    `left` is the trainer's estimate of the time that is left, "1:20".
    """

    name: str
    owner: str
    ordered: float = field(default_factory=time.time)
    status: str = "waiting"
    error: str = ""
    learned: tuple[int, int] = (0, 0)
    left: str = ""

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
        """Keep a painting, the bytes of its file, to be learned. Raises `InputError`, `PictureError`, `WriteError`."""
        name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
        if not name:
            raise InputError("give the style a name of letters or digits")
        if not self.server.up.is_set():
            raise InputError("the painter does not answer just now, and knows which names are taken: try again later")
        taken = {style.name for style in self.server.styles} | {one.name for one in self.makings.values()}
        if name in taken:
            raise InputError(f"there is a style {name} already: choose another name")
        pending = [one for one in self.makings.values() if one.pending]
        if any(one.owner == owner for one in pending):
            raise InputError("one of your styles is being made: wait until it is done")
        if len(pending) >= WAITING:
            raise InputError(f"{WAITING} styles are waiting to be made: try again later")
        making = Making(name, owner)
        self.makings[name] = making  # now, since a picture takes a while to be read and written
        try:
            await asyncio.to_thread(self._keep_picture, making, data)
        except BaseException:
            self.forget(making)
            raise
        self._keep(making)
        self._news.set()
        return making

    def again(self, making: Making) -> None:
        """Try once more what failed, from where it got to."""
        making.status, making.error = "waiting", ""
        self._keep(making)
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
                one for one in self.makings.values() if one.pending and (self._own(one) / "making.json").exists()
            ]
            if not pending:
                await self._news.wait()
                continue
            making = min(pending, key=lambda one: one.ordered)
            following = asyncio.create_task(self._follow(making))
            try:
                await self._make(making)
            except (NstError, OSError) as error:
                making.status, making.error = "failed", " ".join(str(error).split())
                say(f"the style {making.name} is not made: {making.error}")
            finally:
                following.cancel()
            self._keep(making)

    async def _make(self, making: Making) -> None:
        own = self._own(making)
        new, begun = own / "gallery.pth", own / "gallery.pth.resume"
        with (own / "lock").open("wb") as lock:
            await _locked(lock)
            if making.status != "publishing" and not new.exists():
                making.status = "training"
                self._keep(making)
                more = [*self.train, *(["--resume"] if begun.exists() else [])]
                command = ["--add", own / f"{making.name}.png", "--to", self.gallery, "--output", new, *more]
                await self._run(making, lock, "nst_trainer.cli", *command)
            making.status = "publishing"
            self._keep(making)
            if new.exists():
                new.replace(self.gallery)
            await self.server.up.wait()
            tiled = any(style.model == self.gallery.stem and style.tiles for style in self.server.styles)
            more = ["--tiled"] if tiled else []
            more += [] if self.url.startswith("local:") else ["--load", self.url]
            await self._run(making, lock, "nst_export.cli", self.gallery, "--repository", self.repository, *more)
        await self.server.look()
        making.status = "done"

    async def _run(self, making: Making, lock: BinaryIO, module: str, *arguments: object) -> None:
        """Run a command to its end. Raises `Failed` with its own words."""
        log = self._own(making) / "log"
        code = f"from {module} import app; app()"
        with log.open("wb") as said:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", code, *map(str, arguments)),
                stdout=said,
                stderr=said,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(lock.fileno(),),
                start_new_session=True,
                env=os.environ | {"NST_PROGRESS_SECONDS": "0.5"},
            )
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            process.terminate()
            await process.wait()
            raise
        if status:
            raise Failed(_last_words(log))

    async def _follow(self, making: Making) -> None:
        """Read what the trainer says, also one that another program has started."""
        log = self._own(making) / "log"
        while True:
            said = log.read_text(errors="replace") if log.exists() else ""
            if found := _PROGRESS.findall(said):
                done, total, making.left = found[-1]
                making.learned = int(done), int(total)
            await asyncio.sleep(FOLLOWED)

    def _keep_picture(self, making: Making, data: bytes) -> None:
        picture = open_picture(io.BytesIO(data), max_pixels=self.max_pixels, max_side=LARGEST)
        save_picture(Picture(picture.pixels), self._own(making) / f"{making.name}.png")

    def _keep(self, making: Making) -> None:
        with written_whole(self._own(making) / "making.json", private=True) as beside:
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


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it ended without a word"])[-1]
