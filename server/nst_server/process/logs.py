"""Triton's output: write all of it to the log, and show its errors to the user, with the user's paths."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from nst_core.errors import InputError
from nst_server.access import hide
from nst_server.control import cause
from nst_server.repository.links import Links

NO_OUTPUT = "it wrote nothing"

LINE = re.compile(r'([IWEF])\d{4} [^]]*\] "?(.*?)"?$')
"""A line of Triton's own: its severity (E and F are errors), and the message."""

LOADED_OR_FAILED = re.compile(r"(?:successfully loaded|failed to load|Poll failed for model directory) '([^']+)'")
UNREADABLE = re.compile(r"Poll failed for model directory '([^']+)': (.*)")
NOT_LOADED = re.compile(r"failed to load '([^']+)' version (\d+): (.*)")

IGNORED = (
    "CudaDriverHelper has not been initialized",  # on every machine without a GPU
    "ERROR: Failed to create instance",  # repeats NOT_LOADED
    "Internal: failed to load all models",
)
"""Beginnings of error lines that do not help the user; they stay in the log."""


@contextmanager
def open_log(log: Path, *, keep: bool) -> Iterator[TextIO]:
    """Open the log to append to it, emptied first unless `keep`; `InputError` if it cannot be written."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        if not keep:
            log.write_text("")
        file = log.open("a", encoding="utf-8", errors="backslashreplace")  # a detached server writes to it, too
    except OSError as error:
        raise InputError(f"cannot write the log {log}: {error.strerror}") from error
    with file:
        yield file


def last_line(log: Path) -> str:
    """Return the last line of a log, for a message."""
    return (log.read_text(errors="replace").strip().splitlines() or [NO_OUTPUT])[-1]


@dataclass
class LogReader:
    """Read the output of one Triton. `secrets` are hidden in its arguments as soon as it has read them."""

    file: TextIO
    links: Links | None
    on_error: Callable[[str], None]
    secrets: list[str]
    errors: list[str] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)
    """Models that are loaded or have failed to load."""
    last_foreign_line: str = NO_OUTPUT
    """The last line that is not Triton's own, but of the shell, the loader or Python."""

    def read(self, process: subprocess.Popen[str]) -> None:
        """Read until Triton ends."""
        assert process.stdout is not None
        for line in process.stdout:
            line = self.links.outward(line) if self.links else line
            self.file.write(line)
            self.file.flush()
            if match := LINE.match(line):
                self._hide_secrets(process.pid)
                self._note(match[1], match[2])
            else:
                self.last_foreign_line = line.strip() or self.last_foreign_line

    def _hide_secrets(self, pid: int) -> None:
        """Hide the secrets: Triton has read its arguments when it writes its first line."""
        if self.secrets:
            hide(pid, self.secrets)
            self.secrets = []

    def _note(self, severity: str, message: str) -> None:
        if match := LOADED_OR_FAILED.match(message):
            self.settled.add(match[1])
        if severity in "EF" and (error := readable_error(message)):
            self.errors.append(error)
            self.on_error(error)


def readable_error(message: str) -> str | None:
    """Rephrase an error message of Triton's log for the user; None if it does not help."""
    if message.startswith(IGNORED):
        return None
    if match := NOT_LOADED.match(message):
        name, version, reason = match.groups()
        return f"{name} version {version} is not served: {cause(reason)}"
    if match := UNREADABLE.match(message):
        return f"{match[1]} is not served: {match[2]}"
    return message
