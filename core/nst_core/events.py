"""Events of a command for other programs: one JSON document per line, as `--progress-json` writes them.

    {"event": "started", "time": 1764214107.2, "command": "nst train", "version": "0.1.0", "pid": 4711}
    {"event": "progress", "time": ..., "task": "training", "done": 40, "total": 100, "unit": "steps", ...}
    {"event": "finished", "time": ..., "output": "style.pth"}

The last event is `finished`, `failed` (with the error's `message`) or `interrupted`;
docs/reference/file-formats.md lists the keys.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import Any

import typer

from nst_core.errors import NstError, WriteError

PROGRESS_SECONDS = 0.5
"""Minimum time between two `progress` events of a task; its first and last event are always written."""

log = logging.getLogger(__name__)


class EventLog:
    """Append events to a file, a FIFO or `/dev/fd/N`, each at once; without a path, do nothing."""

    def __init__(self, path: Path | None = None) -> None:
        """Open the file; raises `WriteError` if that fails. A FIFO blocks until it has a reader."""
        self._path = path
        self._descriptor: int | None = None
        self._ended = False
        self._progress_times: dict[str, float] = {}
        if path is not None:
            try:
                self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            except OSError as error:
                raise WriteError(f"--progress-json: cannot write {path}: {error.strerror or error}") from error

    def write(self, event: str, **fields: Any) -> None:
        """Append an event. A write error ends the log, not the command."""
        if self._descriptor is None:
            return
        document = {"event": event, "time": round(time.time(), 3), **_finite(fields)}
        try:
            os.write(self._descriptor, json.dumps(document).encode() + b"\n")
        except OSError as error:  # a full disk, or a reader that has gone
            log.warning("cannot write %s (%s); it gets no more events", self._path, error.strerror or error)
            self.close()

    def progress(self, task: str, done: int, total: int, **fields: Any) -> None:
        """Append a `progress` event, unless the task had one within `PROGRESS_SECONDS`."""
        now = time.monotonic()
        if done < total and now - self._progress_times.get(task, -math.inf) < PROGRESS_SECONDS:
            return
        self._progress_times[task] = now
        self.write("progress", task=task, done=done, total=total, **fields)

    def end(self, event: str, **fields: Any) -> None:
        """Append the last event; later calls do nothing."""
        if not self._ended:
            self._ended = True
            self.write(event, **fields)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_current: ContextVar[EventLog] = ContextVar("nst_events")


def current_events() -> EventLog:
    """Return the running command's log, which does nothing without `--progress-json`."""
    return _current.get(EventLog())


@contextmanager
def recording(command: str, path: Path | None) -> Iterator[EventLog]:
    """Log a command from `started` to the event for how the block ends. Raises as `EventLog` does."""
    events = EventLog(path)
    token = _current.set(events)
    events.write("started", command=command, version=version("nst"), pid=os.getpid())
    try:
        yield events
        events.end("finished")
    except KeyboardInterrupt:
        events.end("interrupted")
        raise
    except typer.Exit as leaving:
        events.end("failed" if leaving.exit_code else "finished")
        raise
    except NstError as error:
        events.end("failed", message=" ".join(str(error).split()))
        raise
    except Exception as error:
        events.end("failed", message=f"{type(error).__name__}: {error}")
        raise
    finally:
        _current.reset(token)
        events.close()


class EventReader:
    """Read the events of a file that another process writes; `read` returns those since the last call."""

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, 0

    def read(self) -> list[dict[str, Any]]:
        """Return the new events; none while the file is missing. A truncated file is read from its beginning."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._position:
                    self._position = 0
                file.seek(self._position)
                new = file.read()
        except OSError:
            return []
        whole = new[: new.rfind(b"\n") + 1]  # the last line may be half written
        self._position += len(whole)
        events = []
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                events.append(event)
        return events


def _finite(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON lacks, by null, and paths by text."""
    plain: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            value = None
        plain[name] = str(value) if isinstance(value, Path) else value
    return plain
