"""The finished parts of a video, in a folder beside the output, from which a stopped run continues."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np

from nst_apps.video.codec.decoder import VideoSource
from nst_apps.video.codec.encoder import Encoder
from nst_apps.video.codec.formats import Frame
from nst_apps.video.flow import Motion, Smoother
from nst_apps.video.settings import VideoSettings
from nst_core.errors import InputError, WriteError
from nst_core.files import atomic_write
from nst_core.images import Pixels

log = logging.getLogger(__name__)

PART_FRAMES = 48
"""Frames per part: the most that a crash loses, and the distance between key frames."""

FINGERPRINT_BYTES = 2**20
"""Bytes at a video's beginning and end that identify it."""

SAME_STYLE_DIFFERENCE = 1.0
"""Maximum mean absolute difference (of 255) between two frames of the same model, also on other hardware."""

PART_FILES, ABOUT, LOCK = "[0-9]*-*.nut", "about.json", "lock"
"""Files in the folder: the finished parts, the settings they share, and the lock of the current run."""


class Parts:
    """The finished frames of a video, in a folder beside the target: parts, and the state that the next part needs.

    The state is the last frame before smoothing, and the state of the smoother.
    """

    def __init__(self, folder: Path, given: VideoSource, settings: VideoSettings, lock: ExitStack) -> None:
        self.folder, self._given, self._plan, self._lock = folder, given, settings, lock
        self.files = self._whole()
        self.frames = sum(_count(file) for file in self.files)
        self._stylized: Pixels | None = None
        self.smoother = Smoother()
        if self.files:
            if not self._state.is_file():
                raise InputError(f"{self._state} is missing; give --restart to start again")
            self._stylized, self.smoother = _restored(self._state)
        self._encoding = ExitStack()
        self._encoder: Encoder | None = None
        self._held = 0

    @classmethod
    def of(cls, given: VideoSource, target: Path, settings: VideoSettings, restart: bool = False) -> Self:
        """Open the parts that an earlier run left; with `restart`, discard them.

        Raises `InputError` if finished parts belong to another video, other settings or another encoder, if another
        run is using them, or if the folder exists and is not ours; `WriteError` if it cannot be created.
        """
        folder = target.with_name(f"{target.name}.parts")
        about = folder / ABOUT
        wanted: dict[str, object] = {"format": "nst-video-parts/2", "the video": _fingerprint(given.path)}
        wanted |= {"PyAV": av.__version__, "frames of a part": PART_FRAMES} | settings.options
        try:
            if folder.exists() and not about.is_file() and {file.name for file in folder.iterdir()} - {LOCK}:
                raise InputError(f"{folder} exists and is not from nst video; move it away")
            folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                _lock(stack, folder)
                finished_frames = sum(_count(file) for file in folder.glob(PART_FILES))
                if about.is_file() and finished_frames and not restart:
                    _compare(_read(about), wanted, f"{folder} has {finished_frames} frames")
                    log.info("%s has %d finished frames; resuming after them", folder, finished_frames)
                else:
                    for file in folder.iterdir():
                        if file.name != LOCK:
                            file.unlink()
                    with atomic_write(about) as beside:
                        beside.write_text(json.dumps(wanted))
                return cls(folder, given, settings, stack.pop_all())
        except OSError as error:
            raise WriteError(f"cannot write {folder}: {error.strerror or error}") from error

    def compare(self, again: Frame) -> None:
        """Raise `InputError` if the style now gives another result for the last finished frame."""
        known = self._stylized
        if known is None:
            return
        if known.shape == again.pixels.shape:
            apart = float(np.abs(known.astype(np.int16) - again.pixels).mean())
            if apart <= SAME_STYLE_DIFFERENCE:
                return
        raise InputError(
            f"{self.folder} has {self.frames} frames from another model: the style now gives a different result; "
            "serve the earlier model again, or give --restart to start again"
        )

    def add(self, frame: Frame, moved: Motion | None) -> None:
        """Add the next stylized frame, and its motion since the previous one."""
        if self._encoder is None:
            self._encoder = Encoder(self._begun, self._given.format, self._plan.codec, self._plan.crf)
            self._encoding.push(self._encoder)
        self._stylized = frame.pixels
        if self._plan.smooth:
            frame = replace(frame, pixels=self.smoother.smooth(frame.pixels, moved))
        self._encoder.add(frame)
        self._held += 1
        if self._held == PART_FRAMES:
            self.finish()

    def finish(self) -> None:
        """Finish the current part, so that it survives a crash."""
        if self._encoder is None:
            return
        self._encoding.close()
        whole = self.folder / f"{self.frames:09}-{self._held}.nut"
        self._save(whole)
        with atomic_write(whole) as beside:
            self._begun.replace(beside)
        self.files.append(whole)
        self.frames += self._held
        self._encoder, self._held = None, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the unfinished part, and the folder if no part is finished."""
        with self._lock:
            if self._encoder is not None:
                with suppress(WriteError):  # for example a full disk, which already ends the block
                    self._encoding.close()
                self._begun.unlink(missing_ok=True)
            if not self.files:
                self.remove()

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _whole(self) -> list[Path]:
        """Return the parts from the first frame up to the first gap; remove all others."""
        files: list[Path] = []
        frames = 0
        for file in sorted(self.folder.glob(PART_FILES)):
            if int(file.stem.partition("-")[0]) == frames:
                files.append(file)
                frames += _count(file)
        for file in self.folder.glob("*.nut"):
            if file not in files:
                file.unlink()
        return files

    @property
    def _begun(self) -> Path:
        return self.folder / f"begun-{self.frames:09}.nut"

    @property
    def _state(self) -> Path:
        return self.files[-1].with_suffix(".npz")

    def _save(self, part: Path) -> None:
        """Save the state for the next part, and remove older ones."""
        state = {name: value for name, value in vars(self.smoother).items() if value is not None}
        with atomic_write(part.with_suffix(".npz")) as beside, beside.open("wb") as file:
            np.savez(file, last=self._stylized, **state)  # type: ignore[arg-type]
        for old in self.files[:-1]:
            old.with_suffix(".npz").unlink(missing_ok=True)


def _count(part: Path) -> int:
    return int(part.stem.partition("-")[2])


def _restored(state: Path) -> tuple[Pixels, Smoother]:
    """Load the last frame before smoothing, and the smoother."""
    with np.load(state) as saved:
        values: dict[str, Any] = {name: saved[name] if saved[name].ndim else float(saved[name]) for name in saved.files}
    _rename_painted(values)
    return values.pop("last"), Smoother(**values)


def _rename_painted(values: dict[str, Any]) -> None:
    """Read the state of earlier versions, which call `stylized` `painted`."""
    if "painted" in values:
        values["stylized"] = values.pop("painted")


def _fingerprint(path: Path) -> str:
    """Identify a file by its size, beginning and end, so that it may be moved and copied."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        for start in (0, max(0, size - FINGERPRINT_BYTES)):
            file.seek(start)
            digest.update(file.read(FINGERPRINT_BYTES))
    return f"{size} bytes, {digest.hexdigest()[:12]}"


def _lock(stack: ExitStack, folder: Path) -> None:
    """Keep other runs out of a folder until `stack` is closed. Raises `InputError` if another run holds it."""
    lock = stack.enter_context((folder / LOCK).open("wb"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another nst video is writing to {folder}; wait for it, or choose another --output") from None
    except OSError:
        pass  # a file system without locks


def _read(about: Path) -> dict[str, Any]:
    try:
        document = json.loads(about.read_text())
    except ValueError:
        document = None
    return document if isinstance(document, dict) else {}


def _compare(known: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """Raise `InputError` for parts of another run; it names the first difference."""
    advice = "give --restart to start again, or another --output"
    if known.get("format") != wanted["format"]:
        raise InputError(f"{what} from another version of nst video; {advice}")
    for name, value in wanted.items():
        if name not in known or known[name] != value:
            raise InputError(f"{what} with {name} {_shown(known.get(name))}, not {_shown(value)}; {advice}")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)
